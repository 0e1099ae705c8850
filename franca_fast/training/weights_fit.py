"""Whether weights belong to the network of a configuration, told in the configuration's words.

A strict load would refuse the same weights, but by the names and shapes of tensors; what a user can
mend is a key of the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from franca_fast.config.checks import nesting_dims
from franca_fast.config.schema import Config
from franca_fast.errors import InputError
from franca_fast.hub.infer import infer_backbone, infer_head
from franca_fast.models import ARCHITECTURES, NestedPrototypeHead

_HEADS = {
    "dino_head": "dino.loss_weight, and ibot.separate_head",
    "ibot_head": "ibot.loss_weight and ibot.separate_head",
}


def check_backbone_fits(state: Mapping[str, Tensor], source: str, config: Config) -> None:
    """Raises InputError when a backbone's weights are of another architecture, naming the keys.

    Args:
        state: key -> tensor with the backbone's own key names.
        source: what the message calls the weights.
        config: of the run that they are meant for.
    """
    _refuse(source, list(_backbone_differences(infer_backbone(state, source), config)))


def check_heads_fit(
    heads: Mapping[str, Mapping[str, Tensor]],
    wanted: Mapping[str, NestedPrototypeHead],
    source: str,
    config: Config,
) -> None:
    """Raises InputError when heads are missing, too many or of other sizes, naming the keys.

    Args:
        heads: name of a head -> its weights, without the name.
        wanted: name of a head -> the head of the run.
        source: what the message calls the weights.
        config: of the run that they are meant for.
    """
    for name in wanted.keys() - heads.keys():
        raise InputError(
            f"weights '{source}' hold no {name}, which the configuration asks for (see "
            f"{_HEADS[name]}); they hold {', '.join(sorted(heads)) or 'no head'}"
        )
    for name in heads.keys() - wanted.keys():
        raise InputError(
            f"weights '{source}' hold a {name}, which the configuration does not ask for (see "
            f"{_HEADS.get(name, 'dino and ibot')})"
        )
    for name, state in sorted(heads.items()):
        found = infer_head(state, f"{source}:{name}", wanted[name].nesting_dims[-1])
        _refuse(source, list(_head_differences(name, found, config)))


def _refuse(source: str, differences: list[str]) -> None:
    if differences:
        raise InputError(
            f"weights '{source}' do not fit the configuration: {'; '.join(differences)}"
        )


def _backbone_differences(found: Mapping[str, Any], config: Config) -> Iterator[str]:
    student = config.student
    sizes = {key: ARCHITECTURES[student.arch][key] for key in ("embed_dim", "depth")}
    if any(found[key] != size for key, size in sizes.items()):
        known = [
            name
            for name, values in ARCHITECTURES.items()
            if all(values[key] == found[key] for key in sizes)
        ]
        yield (
            f"student.arch is {student.arch} (width {sizes['embed_dim']}, depth {sizes['depth']}), "
            f"the weights are of {known[0] if known else 'another network'} (width "
            f"{found['embed_dim']}, depth {found['depth']})"
        )
    for key in ("patch_size", "num_register_tokens", "qkv_bias", "proj_bias", "ffn_bias"):
        if key in found:
            yield from _difference(f"student.{key}", getattr(student, key), found[key])
    layer = "swiglufused" if student.ffn_layer == "swiglu" else student.ffn_layer
    if "ffn_layer" in found:
        yield from _difference("student.ffn_layer", layer, found["ffn_layer"])
    if (found.get("layerscale", student.layerscale) is None) != (not student.layerscale):
        yield f"student.layerscale is {student.layerscale}, the weights are without or with it"


def _head_differences(name: str, found: Mapping[str, Any], config: Config) -> Iterator[str]:
    section = name.removesuffix("_head")
    settings = getattr(config, section)
    dims = nesting_dims(config)
    yield from _difference("dino.nesting_dims", list(dims), list(found["nesting_dims"]))
    for key, argument in (
        ("head_n_prototypes", "out_dim"),
        ("head_bottleneck_dim", "bottleneck_dim"),
        ("head_hidden_dim", "hidden_dim"),
        ("head_nlayers", "n_layers"),
    ):
        yield from _difference(f"{section}.{key}", getattr(settings, key), found[argument])
    if len(dims) > 1:  # with one full width both projections are the same
        yield from _difference("dino.projection", config.dino.projection, found["projection"])


def _difference(key: str, configured: Any, found: Any) -> Iterator[str]:
    if configured != found:
        yield f"{key} is {configured}, the weights have {found}"
