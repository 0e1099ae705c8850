"""Files of projectors: our own and the released ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.files import atomic_path, check_file, save_safetensors, save_torch
from franca_fast.hub.weight_files import (
    RASA_HEAD,
    RELEASED_SUFFIX,
    SAFETENSORS_SUFFIX,
    check_finite,
    head_keys,
    open_safetensors,
    read_state_dict,
    shorten,
)

FORMAT = "franca_fast.rasa/1"
LAST_LAYER = "pos_pred.weight"
_LAYER = re.compile(r"^pre_pos_layers\.(\d+)\.weight$")


class ProjectorFile(NamedTuple):
    """What a file holds: [i, 2, d] read-outs, the kind of removal, and facts of the fit."""

    weights: Tensor
    compatible: bool
    facts: dict[str, Any]


def read_weights(path: str | os.PathLike[str]) -> ProjectorFile:
    """Reads either kind of file; see `PositionProjector.from_files`.

    Raises:
        InputError: anything but such a file.
    """
    file = Path(path)
    try:
        state = read_state_dict(file)
        check_finite(state, str(file))
    except InputError as error:  # which calls every file "weights"
        raise InputError(str(error).replace("weights", "rasa", 1)) from error
    if file.suffix == SAFETENSORS_SUFFIX and "weights" in state:
        return _own(file, state)
    return ProjectorFile(_released(file, state), False, {})


def write_projector(
    path: str | os.PathLike[str],
    content: ProjectorFile,
    *,
    matrix: Tensor,
    planes: Sequence[Tensor],
    overwrite: bool,
) -> None:
    """Writes a projector in the form that the suffix tells, complete or not at all.

    Args:
        path: `.safetensors`, or `.pth` for the released form.
        content: what our own form keeps, besides the matrix.
        matrix: the whole map, float32 [d, d].
        planes: what the released form keeps: float32 [2, d] each, whose removal one after the
            other is the map.
        overwrite: whether the file may exist.

    Raises:
        InputError: see `check_projector_output`; or directions that make no pairs, in `.pth`.
        OSError: the file cannot be written.
    """
    file = check_projector_output(path, overwrite=overwrite)
    with atomic_path(file) as temporary:
        if file.suffix == RELEASED_SUFFIX:
            save_torch(_released_form(planes), temporary)
        else:
            tensors = {"weights": content.weights, "matrix": matrix}
            about = {"compatible": content.compatible, "facts": content.facts}
            save_safetensors(tensors, temporary, {"format": FORMAT, "rasa": json.dumps(about)})


def check_projector_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Refuses a file that could not be written, before the work that fills it.

    Raises:
        InputError: another suffix, or the file exists and `overwrite` is false.
    """
    file = Path(path)
    if file.suffix not in (SAFETENSORS_SUFFIX, RELEASED_SUFFIX):
        raise InputError(
            f"rasa: '{file}'; accepted: the suffix {SAFETENSORS_SUFFIX}, or {RELEASED_SUFFIX} for "
            "the released form"
        )
    return check_file(file, overwrite=overwrite)


def _own(file: Path, state: Mapping[str, Tensor]) -> ProjectorFile:
    metadata = open_safetensors(file).metadata() or {}
    try:
        content = json.loads(metadata["rasa"])
        compatible, facts = bool(content["compatible"]), dict(content["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"rasa '{file}': lacks the metadata of a projector") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"rasa: '{file}' of format '{metadata.get('format')}'; accepted: '{FORMAT}'"
        )
    weights = state["weights"]
    if weights.dim() != 3 or weights.shape[1] != 2:
        raise InputError(f"rasa: '{file}' with weights {tuple(weights.shape)}; accepted: [i, 2, d]")
    return ProjectorFile(weights, compatible, facts)


def _released(file: Path, state: Mapping[str, Tensor]) -> Tensor:
    """The layers [i, 2, d] of a released file, in the order in which they are applied."""
    layers = head_keys(state, RASA_HEAD) or dict(state)
    numbered = {int(m[1]): key for key in layers if (m := _LAYER.match(key))}
    unknown = [key for key in layers if key != LAST_LAYER and key not in numbered.values()]
    if LAST_LAYER not in layers or unknown or sorted(numbered) != list(range(len(numbered))):
        raise InputError(
            f"rasa: '{file}' with {shorten(sorted(layers))}; accepted: {LAST_LAYER} and "
            "pre_pos_layers.0.weight, 1, 2, ..."
        )
    ordered = [layers[numbered[i]] for i in sorted(numbered)] + [layers[LAST_LAYER]]
    shapes = sorted({tuple(layer.shape) for layer in ordered})
    if len(shapes) > 1 or len(shapes[0]) != 2 or shapes[0][0] != 2:
        raise InputError(f"rasa: '{file}' with layers {shapes}; accepted: one shape (2, d) for all")
    return torch.stack([layer.float() for layer in ordered])


def _released_form(planes: Sequence[Tensor]) -> dict[str, Tensor]:
    if any(plane.shape[0] != 2 for plane in planes):
        directions = sum(plane.shape[0] for plane in planes)
        raise InputError(
            f"rasa: {directions} directions, which make no pairs; accepted: {SAFETENSORS_SUFFIX}"
        )
    names = [*(f"pre_pos_layers.{i}.weight" for i in range(len(planes) - 1)), LAST_LAYER]
    return {name: plane.clone() for name, plane in zip(names, planes, strict=True)}
