"""Vision transformers of timm as encoders."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from franca_fast.data.settings import CropSettings
from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation.foreign_encoders import Anatomy, ForeignEncoder, library, one_line
from franca_fast.hub.load import RANDOM, TIMM
from franca_fast.hub.weight_files import check_finite, read_state_dict

# What a network must have to be taken for a vision transformer of timm's kind.
_PARTS = ("forward_features", "num_prefix_tokens", "patch_embed", "embed_dim", "blocks", "norm")


class TimmEncoder(ForeignEncoder):
    """A network of timm whose `forward_features` gives tokens [B, prefix + patches, d].

    Args:
        model: for instance timm's `VisionTransformer` or `Eva` (DINOv3).
        name: what messages call it; None takes its architecture's.

    Raises:
        InputError: another kind of network.
    """

    def __init__(self, model: nn.Module, name: str | None = None) -> None:
        super().__init__(model, _anatomy(model, name))

    def _tokens(self, images: Tensor) -> Tensor:
        tokens = self.model.forward_features(images)  # type: ignore[operator]
        if not isinstance(tokens, Tensor):
            raise InputError(
                f"model: '{self.name}' gave {type(tokens).__name__}; accepted: one tensor of tokens"
            )
        return tokens

    def _key_module(self) -> nn.Module | None:
        attention = getattr(self.anatomy.blocks[-1], "attn", None)
        # Every attention of timm's gives its keys to this, which as a rule is the identity.
        keys = getattr(attention, "k_norm", None)
        return keys if isinstance(keys, nn.Module) else None

    def _keys(self, output: Tensor) -> Tensor:
        return output.transpose(1, 2).flatten(2)  # [B, heads, tokens, d / heads]


def load_timm_encoder(
    name: str, weights: str | os.PathLike[str] | None = None, img_size: int | None = None
) -> TimmEncoder:
    """Builds a vision transformer of timm.

    Args:
        name: "timm:" and timm's name of it, with a tag for its weights where there are several.
        weights: None for timm's own, which timm keeps and downloads; a file; or "random".
        img_size: side in pixels that the network is built for, to which timm interpolates
            positions; None takes the one of the weights. Other sizes work where the architecture
            has `dynamic_img_size`.

    Returns:
        the encoder in evaluation mode, on the CPU, float32.

    Raises:
        InputError: timm is not installed, no such name, no vision transformer, or weights that
            cannot be had or do not fit.
    """
    timm = library("timm", name)
    bare = name.removeprefix(TIMM)
    if not bare.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        _check_known(timm, name)
    options: dict[str, Any] = {"num_classes": 0, "pretrained": weights != RANDOM}
    if img_size is not None:
        options["img_size"] = img_size
    if weights is not None and weights != RANDOM:
        options["pretrained_cfg_overlay"] = _own_weights(timm, bare, weights)
    try:
        try:
            model = timm.create_model(bare, dynamic_img_size=True, **options)
        except TypeError:  # an architecture of one size
            model = timm.create_model(bare, **options)
    except Exception as error:  # whatever timm and the hub behind it raise
        given = "" if weights is None else f" with weights '{os.fspath(weights)}'"
        raise InputError(f"model: '{name}'{given} cannot be loaded: {one_line(error)}") from error
    check_finite(model.state_dict(), name if weights is None else os.fspath(weights))
    encoder = TimmEncoder(model.float(), name)
    encoder.eval()
    return encoder


def is_timm(model: object) -> bool:
    """Whether a network has the interface of timm's vision transformers."""
    return isinstance(model, nn.Module) and all(hasattr(model, part) for part in _PARTS)


def _check_known(timm: Any, name: str) -> None:
    architecture = name.removeprefix(TIMM).partition(".")[0]
    if timm.is_model(architecture):
        return
    known = [f"{TIMM}{one}" for one in timm.list_models()]
    raise InputError(
        f"model: unknown '{name}'{did_you_mean(f'{TIMM}{architecture}', known)}; accepted: "
        f"'{TIMM}' and a name of timm.list_models()"
    )


def _own_weights(timm: Any, bare: str, weights: str | os.PathLike[str]) -> dict[str, Any]:
    """What makes timm take a file's tensors, with its own translation of their keys.

    The classifier is left out and every other key must fit.
    """
    found = timm.get_pretrained_cfg(bare, allow_unregistered=False)
    classifier = (found and found.classifier) or "head"
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    starts = tuple(f"{one}." for one in classifiers)
    state = {k: t for k, t in read_state_dict(weights).items() if not k.startswith(starts)}
    return {"state_dict": state, "num_classes": 0, "classifier": None}


def _anatomy(model: nn.Module, name: str | None) -> Anatomy:
    facts: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    named = name or f"{TIMM}{facts.get('architecture') or type(model).__name__}"
    missing = [part for part in _PARTS if not hasattr(model, part)]
    patch: Any = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    patch = (patch, patch) if isinstance(patch, int) else patch
    if missing or patch is None or patch[0] != patch[1]:
        lacks = f"without {', '.join(missing)}" if missing else f"with patches {patch}"
        raise InputError(
            f"model: '{named}', {lacks}; accepted: vision transformers of timm, with square patches"
        )
    embed: Any = model.patch_embed
    size = getattr(embed, "img_size", None) or tuple(facts.get("input_size", (3, 224, 224)))[1:]
    has_cls = getattr(model, "cls_token", None) is not None
    return Anatomy(
        name=named,
        patch_size=int(patch[0]),
        embed_dim=int(model.embed_dim),  # type: ignore[arg-type]
        img_size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        other_sizes=bool(getattr(model, "dynamic_img_size", False)),
        prefix_tokens=int(model.num_prefix_tokens),  # type: ignore[arg-type]
        has_cls=has_cls,
        blocks=model.blocks,  # type: ignore[arg-type]
        norm=model.norm,  # type: ignore[arg-type]
        mean=facts.get("mean", CropSettings.mean),
        std=facts.get("std", CropSettings.std),
    )
