"""Starting a run from the weights of another."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.hub.state_dict import load_strict, normalize_backbone_keys, read_state_dict
from franca_fast.training.checkpoint import Checkpoint, load_newest, read_checkpoint
from franca_fast.training.config import Config
from franca_fast.training.student_teacher import Network, StudentTeacher, build_student_backbone

_BACKBONE = "backbone."


def load_initial_weights(model: StudentTeacher, config: Config) -> str | None:
    """Loads what MODEL.WEIGHTS or student.pretrained_weights names; every key must match.

    A position embedding for another image size is resampled to that of the run.

    Returns:
        what was loaded, for the log; None when nothing is asked for.

    Raises:
        InputError: no such file, or names or shapes that do not match (all are named).
    """
    if config.MODEL.WEIGHTS:
        checkpoint = _find_checkpoint(_expand(config.MODEL.WEIGHTS))
        for name, network in (("student", model.student), ("teacher", model.teacher)):
            source = f"{checkpoint.path}:{name}"
            _load_network(network, checkpoint.model[name], source, config)
        return f"student, teacher and heads of '{checkpoint.path}'"
    if config.student.pretrained_weights:
        path = _expand(config.student.pretrained_weights)
        state = normalize_backbone_keys(read_state_dict(path))
        for network in (model.student, model.teacher):
            _load_backbone(network.backbone, state, str(path), config)
        return f"the backbone of '{path}'"
    return None


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _find_checkpoint(path: Path) -> Checkpoint:
    if (path / "manifest.json").is_file():
        return read_checkpoint(path)
    for folder in (path / "checkpoints", path):
        found = load_newest(folder)
        if found is not None:
            return found
    raise InputError(
        f"MODEL.WEIGHTS: '{path}' is neither a run's folder nor one of its checkpoints; for a file "
        "of backbone weights set student.pretrained_weights"
    )


def _load_network(
    network: Network, state: Mapping[str, Tensor], source: str, config: Config
) -> None:
    backbone = {
        key.removeprefix(_BACKBONE): tensor
        for key, tensor in state.items()
        if key.startswith(_BACKBONE)
    }
    _load_backbone(network.backbone, backbone, source, config)
    heads = nn.ModuleDict(
        {name: head for name, head in network.named_children() if name != "backbone"}
    )
    others = {key: tensor for key, tensor in state.items() if not key.startswith(_BACKBONE)}
    load_strict(heads, _copies(others), source)


def _load_backbone(
    backbone: nn.Module, state: Mapping[str, Tensor], source: str, config: Config
) -> None:
    position = state.get("pos_embed")
    if position is not None and position.shape != backbone.get_parameter("pos_embed").shape:
        state = {**state, "pos_embed": _resample(position, config)}
    load_strict(backbone, _copies(state), source)


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that a module can take over: student and teacher must not share storage."""
    return {key: tensor.clone() for key, tensor in state.items()}


def _resample(position: Tensor, config: Config) -> Tensor:
    """Position embedding [1, 1 + n, d] of square images, for the size of the run's crops."""
    side = math.isqrt(position.shape[1] - 1)
    size, patch = config.crops.global_crops_size, config.student.patch_size
    with torch.device("meta"):
        other = build_student_backbone(config, img_size=side * patch)
    other.pos_embed = nn.Parameter(position)
    with torch.no_grad():
        return other.position_embedding(size, size)
