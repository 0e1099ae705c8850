"""What evaluations ask of an encoder, and the ways to turn its tokens into features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation.foreign_encoders import ForeignEncoder
from franca_fast.evaluation.huggingface_encoders import (
    HuggingFaceEncoder,
    foreign_type,
    is_of_transformers,
    load_huggingface_encoder,
)
from franca_fast.evaluation.timm_encoders import TimmEncoder, is_timm, load_timm_encoder
from franca_fast.hub import check_img_size, load_model
from franca_fast.hub.load import TIMM
from franca_fast.hub.projector import PositionProjector
from franca_fast.models import ProjectedEncoder, VisionTransformer
from franca_fast.processor import fast_bfloat16

# Any callable [B, 3, S, S] -> [B, d] can be evaluated by its output. A module with DINOv2's
# `forward_features` (a dictionary of tokens) can also be pooled over patches and visualised.
Encoder = Callable[[Tensor], Tensor]

_CLS, _PATCHES = "x_norm_clstoken", "x_norm_patchtokens"
_POOLINGS: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "cls": lambda tokens: tokens[_CLS],
    "patch_mean": lambda tokens: tokens[_PATCHES].float().mean(1),
    "cls_patch_mean": lambda tokens: torch.cat([tokens[_CLS], tokens[_PATCHES].float().mean(1)], 1),
}
POOLINGS = tuple(_POOLINGS)
PRECISIONS = ("auto", "bf16", "fp32")


def load_encoder(
    name_or_path: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    img_size: int | None = None,
    rasa: PositionProjector | str | os.PathLike[str] | None = None,
    *,
    checkpoint: int | str | None = None,
    network: str = "teacher",
) -> VisionTransformer | ForeignEncoder | ProjectedEncoder:
    """Loads an encoder of this package or of another library.

    What `name_or_path` may be:

    - whatever `load_model` takes, which also has Hugging Face's DINOv2;
    - a Hugging Face folder of DINOv3 or another vision transformer (model types dinov3_vit, vit,
      vit_msn, deit, ijepa), loaded by transformers, without network and without code of the folder;
    - "timm:" and the name of a vision transformer of timm, such as
      "timm:vit_small_patch14_dinov2.lvd142m", whose weights timm keeps and downloads.

    All of them take images that are normalised as `eval_transform` does, and have
    `forward_features`, `get_intermediate_layers`, `patch_size`, `embed_dim` and `config`.

    Args:
        name_or_path: as above.
        weights: as in `load_model`; of timm's networks a file or "random" in place of timm's own.
        img_size: as in `load_model`; of timm's networks the size that they are built for.
        rasa: as in `load_model`, for any encoder: removes positions from the patch tokens.
        checkpoint: as in `load_model`.
        network: as in `load_model`.

    Returns:
        the encoder in evaluation mode, on the CPU, float32: what `load_model` gives, a
        `ForeignEncoder`, or with `rasa` a `ProjectedEncoder` around one.

    Raises:
        InputError: as `load_model`; a library that is not installed; a type of model that is not
            accepted.

    Example:
        >>> encoder = load_encoder("vit_small", weights="random")
        >>> encoder.forward_features(torch.zeros(1, 3, 28, 28))["x_norm_patchtokens"].shape
        torch.Size([1, 4, 384])
    """
    name = os.fspath(name_or_path)
    encoder: ForeignEncoder | None = None
    if name.startswith(TIMM):
        encoder = load_timm_encoder(name, weights, img_size)
    elif foreign_type(Path(name)) is not None:
        if weights is not None:
            raise InputError(f"weights: '{os.fspath(weights)}', for a folder; accepted: None")
        encoder = load_huggingface_encoder(name)
    if encoder is None:
        return load_model(name, weights, img_size, rasa, checkpoint=checkpoint, network=network)
    if checkpoint is not None or network != "teacher":
        given = f"checkpoint: {checkpoint}" if checkpoint is not None else f"network: '{network}'"
        raise InputError(f"{given}, for '{name}'; accepted: with a run's folder")
    check_img_size(img_size, encoder.patch_size)
    if rasa is None:
        return encoder
    if not isinstance(rasa, PositionProjector):
        rasa = PositionProjector.from_files(rasa)
    projected = rasa.attach(encoder)
    assert isinstance(projected, ProjectedEncoder)
    return projected


def as_encoder(model: Encoder | str | os.PathLike[str]) -> Encoder:
    """An encoder as it is, or the one that `load_encoder` loads by its name or path.

    A checkpoint's folder, `runs/mine/checkpoints/1000`, stands for its teacher. A network of timm
    or transformers itself, which shares its weights with the result, is told by what it has.
    """
    if isinstance(model, (str, os.PathLike)):
        return load_encoder(model)
    if is_timm(model):
        return TimmEncoder(model)  # type: ignore[arg-type]
    if is_of_transformers(model):
        return HuggingFaceEncoder(model)  # type: ignore[arg-type]
    return model


def pooled_features(encoder: Encoder, images: Tensor, pooling: str) -> Tensor:
    """Features of a batch of images.

    Args:
        encoder: a module with `forward_features`, or a callable whose output is the feature.
        images: [B, 3, S, S] on the encoder's device.
        pooling: "cls", "patch_mean" (mean of the patch tokens) or "cls_patch_mean" (both, joined).

    Returns:
        float32 [B, d].

    Raises:
        InputError: unknown pooling, or one that the encoder has no tokens for.
    """
    check_pooling(pooling)
    if pooling == "cls" and isinstance(encoder, VisionTransformer):
        # The last block is then computed for the CLS tokens alone.
        no_patches = torch.empty(0, dtype=torch.int64, device=images.device)
        return encoder.forward_features(images, patches=no_patches)[_CLS].float()
    forward_features = getattr(encoder, "forward_features", None)
    if forward_features is not None:
        return _POOLINGS[pooling](forward_features(images)).float()
    if pooling != "cls":
        raise InputError(f"pooling: '{pooling}', without forward_features; accepted: cls")
    features = encoder(images)
    if features.dim() != 2:
        raise InputError(f"encoder: gave {tuple(features.shape)}; accepted: [B, d]")
    return features.float()


def patch_token_grid(encoder: Encoder, images: Tensor) -> Tensor:
    """Patch tokens laid out as the patches of the image.

    Args:
        encoder: a module with `forward_features` and `patch_size`.
        images: [B, 3, H, W] on the encoder's device.

    Returns:
        float32 [B, H / patch, W / patch, d].

    Raises:
        InputError: the encoder has no patch tokens.
    """
    forward_features = getattr(encoder, "forward_features", None)
    patch_size = getattr(encoder, "patch_size", None)
    if forward_features is None or patch_size is None:
        raise InputError(
            "encoder: no patch tokens; accepted: a module with forward_features and patch_size"
        )
    tokens = forward_features(images)[_PATCHES].float()
    height, width = images.shape[2] // patch_size, images.shape[3] // patch_size
    return tokens.reshape(len(tokens), height, width, -1)


def check_pooling(pooling: str) -> None:
    """Refuses a pooling that does not exist.

    Raises:
        InputError: with the nearest name.
    """
    if pooling not in _POOLINGS:
        raise InputError(
            f"pooling: '{pooling}'{did_you_mean(pooling, POOLINGS)}; accepted: "
            f"{', '.join(POOLINGS)}"
        )


def image_size_of(encoder: Any, img_size: int | None) -> int:
    """The side of the images to feed: as asked, else the encoder's own, else 224.

    Raises:
        InputError: not a multiple of the encoder's patch size.
    """
    size = getattr(encoder, "config", {}).get("img_size", 224) if img_size is None else img_size
    check_img_size(size, getattr(encoder, "patch_size", 1))
    return size


def precision_of(encoder: Encoder, precision: str) -> str:
    """The precision in which an encoder computes.

    Args:
        encoder: the encoder, on its device.
        precision: "fp32" leaves it as its weights are; "bf16" computes matrix products and
            attention in bfloat16; "auto" is bf16 where the encoder's device multiplies such
            matrices fast (see `franca_fast.processor`), and fp32 elsewhere.

    Returns:
        "bf16" or "fp32".

    Raises:
        InputError: another precision.

    Example:
        >>> precision_of(torch.nn.Flatten(), "bf16")
        'bf16'
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"precision: '{precision}'{did_you_mean(precision, PRECISIONS)}; accepted: "
            f"{', '.join(PRECISIONS)}"
        )
    if precision == "auto":
        return "bf16" if fast_bfloat16(device_of(encoder)) else "fp32"
    return precision


def device_of(encoder: Encoder) -> torch.device:
    """The device of the encoder's parameters; the CPU when it has none."""
    parameter = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def inference(encoder: Encoder, precision: str = "fp32") -> Iterator[torch.device]:
    """Runs the block without gradients and with the encoder in evaluation mode.

    Args:
        encoder: the encoder, on its device.
        precision: see `precision_of`.

    Yields:
        the encoder's device.
    """
    module = encoder if isinstance(encoder, nn.Module) else None
    was_training = module is not None and module.training
    device = device_of(encoder)
    autocast: AbstractContextManager[object] = nullcontext()
    if precision_of(encoder, precision) == "bf16":  # one context, which casts weights once
        autocast = torch.autocast(device.type, torch.bfloat16)
    if module is not None:
        module.eval()
    try:
        with torch.no_grad(), autocast:
            yield device
    finally:
        if module is not None:
            module.train(was_training)
