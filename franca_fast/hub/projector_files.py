"""Files of projectors: our own and the released ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.files import atomic_path, check_file, save_safetensors
from franca_fast.hub.state_dict import (
    SAFETENSORS_SUFFIX,
    head_keys,
    read_state_dict,
    shorten,
)

if TYPE_CHECKING:
    from franca_fast.hub.projector import PositionProjector

FORMAT = "franca_fast.rasa/1"
_RELEASED_SUFFIX = ".pth"
_HEAD = "rasa_head"
_LAST = "pos_pred.weight"
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
    except InputError as error:  # which calls every file "weights"
        raise InputError(str(error).replace("weights '", "rasa '", 1)) from error
    if file.suffix == SAFETENSORS_SUFFIX and "weights" in state:
        return _own(file, state)
    return ProjectorFile(_released(file, state), False, {})


def write_projector(
    projector: PositionProjector, path: str | os.PathLike[str], *, overwrite: bool
) -> None:
    """Writes a projector; see `PositionProjector.save`."""
    file = check_projector_output(path, overwrite=overwrite)
    with atomic_path(file) as temporary:
        if file.suffix == _RELEASED_SUFFIX:
            _save_torch(_released_form(projector), temporary)
        else:
            tensors = {"weights": projector.weights, "matrix": projector.matrix().float()}
            content = {"compatible": projector.compatible, "facts": projector.facts}
            save_safetensors(tensors, temporary, {"format": FORMAT, "rasa": json.dumps(content)})


def check_projector_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Refuses a file that could not be written, before the work that fills it.

    Raises:
        InputError: another suffix, or the file exists and `overwrite` is false.
    """
    file = Path(path)
    if file.suffix not in (SAFETENSORS_SUFFIX, _RELEASED_SUFFIX):
        raise InputError(
            f"rasa '{file}': the suffix must be {SAFETENSORS_SUFFIX}, or {_RELEASED_SUFFIX} for "
            "the released form"
        )
    return check_file(file, overwrite=overwrite)


def _own(file: Path, state: Mapping[str, Tensor]) -> ProjectorFile:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    try:
        content = json.loads(metadata["rasa"])
        compatible, facts = bool(content["compatible"]), dict(content["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"rasa '{file}': lacks the metadata of a projector") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"rasa '{file}': format '{metadata.get('format')}' is unknown; accepted is '{FORMAT}'"
        )
    weights = state["weights"]
    if weights.dim() != 3 or weights.shape[1] != 2:
        raise InputError(f"rasa '{file}': weights {list(weights.shape)}; [i, 2, d] expected")
    return ProjectorFile(weights, compatible, facts)


def _released(file: Path, state: Mapping[str, Tensor]) -> Tensor:
    """The layers [i, 2, d] of a released file, in the order in which they are applied."""
    layers = head_keys(state, _HEAD) or dict(state)
    numbered = {int(m[1]): key for key in layers if (m := _LAYER.match(key))}
    unknown = [key for key in layers if key != _LAST and key not in numbered.values()]
    if _LAST not in layers or unknown or sorted(numbered) != list(range(len(numbered))):
        raise InputError(
            f"rasa '{file}': expected are {_LAST} and pre_pos_layers.0.weight, 1, 2, ...; it holds "
            f"{shorten(sorted(layers))}"
        )
    ordered = [layers[numbered[i]] for i in sorted(numbered)] + [layers[_LAST]]
    shapes = sorted({tuple(layer.shape) for layer in ordered})
    if len(shapes) > 1 or len(shapes[0]) != 2 or shapes[0][0] != 2:
        raise InputError(f"rasa '{file}': layers {shapes}; one shape (2, d) expected for all")
    return torch.stack([layer.float() for layer in ordered])


def _released_form(projector: PositionProjector) -> dict[str, Tensor]:
    """Layers whose removal one after the other is the projector's map."""
    layers = projector.weights if projector.compatible else projector.write.float().split(2)
    if any(layer.shape[0] != 2 for layer in layers):
        raise InputError(f"rasa: {projector.rank} directions make no pairs; use .safetensors")
    names = [*(f"pre_pos_layers.{i}.weight" for i in range(len(layers) - 1)), _LAST]
    return {name: layer.clone() for name, layer in zip(names, layers, strict=True)}


def _save_torch(state: dict[str, Tensor], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(str(error).splitlines()[0]) from error
