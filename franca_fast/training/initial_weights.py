"""Starting a run from the weights of another, or from a file.

Weights of another network are refused in the configuration's words: a strict load would refuse them
too, but by the names and shapes of tensors, and what a user can mend is a key.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.config.schema import Config
from franca_fast.errors import InputError
from franca_fast.hub.checkpoint_files import (
    Checkpoint,
    load_newest,
    read_checkpoint,
    steps_in,
)
from franca_fast.hub.infer import infer_backbone, infer_head
from franca_fast.hub.run_folder import is_checkpoint, why_no_model
from franca_fast.hub.save import backbone_files
from franca_fast.hub.weight_files import (
    PROTOTYPE_HEADS,
    head_keys,
    load_strict,
    normalize_backbone_keys,
    read_state_dict,
)
from franca_fast.models import ARCHITECTURES, NestedPrototypeHead
from franca_fast.paths import why_unreadable
from franca_fast.training.student_teacher import Network, StudentTeacher, build_student_backbone

_HEAD_KEYS = {
    "out_dim": "head_n_prototypes",
    "bottleneck_dim": "head_bottleneck_dim",
    "hidden_dim": "head_hidden_dim",
    "n_layers": "head_nlayers",
}

logger = logging.getLogger(__name__)


def load_initial_weights(model: StudentTeacher, config: Config) -> str | None:
    """Loads what MODEL.WEIGHTS or student.pretrained_weights names; every key must match.

    A position embedding for another image size is resampled to that of the run, here and once, as
    the weights' network would do at every step.

    Returns:
        what was loaded, for the log; None when nothing is asked for. That a file has no heads is
        also a warning.

    Raises:
        InputError: no such file, weights of another network (the keys of the configuration that
            differ are named), or none although `train.high_resolution_finetune` asks for some.
    """
    if config.MODEL.WEIGHTS:
        path = _expand(config.MODEL.WEIGHTS)
        file = _find_file(path)
        return _load_file(model, file, config) if file else _load_run(model, path, config)
    if config.student.pretrained_weights:
        path = _expand(config.student.pretrained_weights)
        state = normalize_backbone_keys(read_state_dict(path))
        resized = [
            _load_backbone(network, state, str(path), config)
            for network in (model.student, model.teacher)
        ]
        return f"the backbone of '{path}'{resized[0]}"
    if config.train.high_resolution_finetune:
        raise InputError(
            "train.high_resolution_finetune: there are no weights to fine-tune; use franca-fast "
            "finetune WEIGHTS, or set MODEL.WEIGHTS or student.pretrained_weights"
        )
    return None


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _find_file(path: Path) -> Path | None:
    """The file of weights that a path means, or None for a run with checkpoints."""
    if os.path.isdir(path):
        exported = backbone_files(path / "exported" / "teacher")[0]
        has_run = bool(steps_in(path / "checkpoints"))
        return exported if exported.is_file() and not has_run else None
    stem = backbone_files(path)[0]
    if os.path.isfile(path) and path.suffix != ".json":
        return path
    if os.path.isfile(stem):
        return stem
    raise InputError(f"weights '{path}': {why_unreadable(path)}")


def _load_run(model: StudentTeacher, path: Path, config: Config) -> str:
    checkpoint = _find_checkpoint(path)
    networks = checkpoint.model
    resized = [
        _load_network(network, networks[name], f"{checkpoint.path}:{name}", config)
        for name, network in (("student", model.student), ("teacher", model.teacher))
    ]
    return f"student, teacher and heads of '{checkpoint.path}'{resized[0]}"


def _load_file(model: StudentTeacher, path: Path, config: Config) -> str:
    state = read_state_dict(path)
    resized = [
        _load_network(network, state, str(path), config)
        for network in (model.student, model.teacher)
    ]
    if _heads_in(state):
        return f"backbone and heads of '{path}'{resized[0]}"
    logger.warning("'%s' holds no heads: they and their prototypes start at random", path)
    return f"the backbone of '{path}' (heads at random){resized[0]}"


def _find_checkpoint(path: Path) -> Checkpoint:
    if is_checkpoint(path):
        return read_checkpoint(path)
    for folder in (path / "checkpoints", path):
        if (found := load_newest(folder)) is not None:
            return found
    raise InputError(
        f"weights: '{path}' holds neither a checkpoint nor an exported model "
        f"({why_no_model(path)}); accepted: a run's folder, one of its checkpoints, or a file of "
        "weights"
    )


def _load_network(
    network: Network, state: Mapping[str, Tensor], source: str, config: Config
) -> str:
    """Fills a network, as `_load_backbone`; heads stay random where there are none in `state`."""
    resized = _load_backbone(network, normalize_backbone_keys(state), source, config)
    if found := _heads_in(state):
        _check_heads_fit(found, network.heads(), source)
    for name, keys in found.items():
        load_strict(network.heads()[name], _copies(keys), f"{source}:{name}")
    return resized


def _heads_in(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Name of a head -> its weights, of all that some configuration could ask for."""
    heads = {name: head_keys(state, name) for name in PROTOTYPE_HEADS}
    return {name: keys for name, keys in heads.items() if keys}


def _load_backbone(
    network: Network, state: Mapping[str, Tensor], source: str, config: Config
) -> str:
    """Fills the backbone; returns what the log says of a position embedding that was resized."""
    _refuse(source, list(_backbone_differences(infer_backbone(state, source), config)))
    position, fitting = state["pos_embed"], network.backbone.pos_embed.shape
    resized = ""
    if position.shape != fitting:
        state = {**state, "pos_embed": _resample(position, config)}
        before, after = (math.isqrt(shape[1]) for shape in (position.shape, fitting))
        resized = f", positions resized from {before} x {before} to {after} x {after}"
    load_strict(network.backbone, _copies(state), source)
    return resized


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that a module can take over: student and teacher must not share storage."""
    return {key: tensor.clone() for key, tensor in state.items()}


def _resample(position: Tensor, config: Config) -> Tensor:
    """Position embedding [1, 1 + n, d] of square images, for the size of the run's crops."""
    side = math.isqrt(position.shape[1] - 1)
    size, patch = config.crops.global_crops_size, config.student.patch_size
    with torch.device("meta"):
        other = build_student_backbone(config, img_size=side * patch)
    other.pos_embed = nn.Parameter(position.float())
    with torch.no_grad():
        return other.position_embedding(size, size)


def _check_heads_fit(
    heads: Mapping[str, Mapping[str, Tensor]],
    wanted: Mapping[str, NestedPrototypeHead],
    source: str,
) -> None:
    """Raises InputError when heads are missing, too many or of other sizes, naming the keys."""
    if heads.keys() != wanted.keys():
        raise InputError(
            f"weights '{source}' hold {' and '.join(sorted(heads))}; accepted: "
            f"{' and '.join(sorted(wanted))}, which the loss_weight of each loss and "
            "ibot.separate_head ask for"
        )
    for name, state in sorted(heads.items()):
        found = infer_head(state, f"{source}:{name}", wanted[name].nesting_dims[-1])
        _refuse(source, list(_head_differences(name, found, wanted[name].config)))


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


def _head_differences(
    name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[str]:
    section = name.removesuffix("_head")
    for argument, value in wanted.items():
        # With one full width both projections are the same.
        if argument in found and not (argument == "projection" and len(found["nesting_dims"]) == 1):
            own = _HEAD_KEYS.get(argument)
            key = f"{section}.{own}" if own else f"dino.{argument}"
            yield from _difference(key, value, found[argument])


def _difference(key: str, configured: Any, found: Any) -> Iterator[str]:
    found = list(found) if isinstance(found, tuple) else found
    if configured != found:
        yield f"{key} is {configured}, the weights have {found}"
