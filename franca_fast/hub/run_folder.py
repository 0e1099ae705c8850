"""A run's folder as a model: the networks of its checkpoints, or why there is no model in it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from franca_fast.errors import InputError, did_you_mean
from franca_fast.hub.checkpoint_files import (
    MANIFEST,
    Checkpoint,
    load_newest,
    read_checkpoint,
    steps_in,
)
from franca_fast.hub.infer import infer_backbone
from franca_fast.hub.weight_files import shorten
from franca_fast.models.architectures import ARCHITECTURES
from franca_fast.paths import why_unreadable

NEWEST = "newest"
NETWORKS = ("teacher", "student")
_BACKBONE = (
    "patch_size",
    "drop_path_rate",
    "drop_path_uniform",
    "layerscale",
    "ffn_layer",
    "qkv_bias",
    "proj_bias",
    "ffn_bias",
    "num_register_tokens",
    "interpolate_antialias",
    "interpolate_offset",
)
_TAIL = 1 << 16  # bytes of metrics.jsonl, more than a line of it


class RunNetwork(NamedTuple):
    """A network of a checkpoint, its tensors still on the disk.

    Attributes:
        checkpoint: it is whole.
        network: "teacher" or "student".
    """

    checkpoint: Checkpoint
    network: str

    @property
    def source(self) -> str:
        """What messages call it."""
        return f"{self.checkpoint.path}:{self.network}"

    @property
    def heads(self) -> list[str]:
        """The names of its heads."""
        parts = (name.split(".") for name in self.checkpoint.shapes)
        return sorted({p[1] for p in parts if p[0] == self.network and p[1] != "backbone"})

    @property
    def normalize(self) -> bool:
        """Whether its heads L2-normalise the bottleneck."""
        return bool(self._section("dino").get("normalize_bottleneck", False))

    def read(self, module: str) -> dict[str, Tensor]:
        """The tensors of "backbone" or of a head, in memory; no others are read."""
        prefix = f"{self.network}.{module}."
        # Copies: a tensor that lies in a file would change with it.
        return {
            name[len(prefix) :]: self.checkpoint.read(name).clone()
            for name in self.checkpoint.shapes
            if name.startswith(prefix)
        }

    def architecture(self, backbone: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments of the backbone: as its run had them, the rest by the shapes."""
        student = self._section("student")
        found = infer_backbone(backbone, self.source)
        found |= ARCHITECTURES.get(str(student.get("arch")), {})
        found |= backbone_arguments(student)
        found["img_size"] = self._section("crops").get("global_crops_size", found["img_size"])
        return found | ({"drop_path_rate": 0.0} if self.network == "teacher" else {})

    def _section(self, name: str) -> Mapping[str, Any]:
        return settings_of(self.checkpoint.config).get(name, {})


def backbone_arguments(student: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `VisionTransformer` that the section "student" of a configuration gives."""
    return {name: student[name] for name in _BACKBONE if name in student}


def find_network(
    path: str | os.PathLike[str], checkpoint: int | str | None, network: str
) -> RunNetwork | None:
    """The network that a path and a choice of a checkpoint mean; None when they mean no checkpoint.

    Args:
        path: a checkpoint's folder; or, with a choice, the folder of a run or of checkpoints.
        checkpoint: a step (also as text), or "newest" for the newest that is whole (a damaged newer
            one is named in a warning); None where the path is a checkpoint or something else.
        network: "teacher" or "student".

    Raises:
        InputError: no such checkpoint, a damaged one, or a choice that does not fit the path.
    """
    folder, given = Path(path), os.fspath(path)
    if network not in NETWORKS:
        raise InputError(
            f"network: '{network}'{did_you_mean(str(network), NETWORKS)}; accepted: "
            f"{' or '.join(NETWORKS)}"
        )
    if is_checkpoint(folder):
        if checkpoint is not None:
            raise InputError(
                f"checkpoint: {checkpoint}, for '{given}', which is one; accepted: the run's folder"
            )
        return RunNetwork(read_checkpoint(folder), network)
    if checkpoint is None:
        if network != NETWORKS[0]:
            raise InputError(
                f"network: '{network}', for '{given}', which has one network; accepted: with a "
                f"checkpoint of a run ({NEWEST} or its step)"
            )
        return None
    if os.path.isdir(folder / "checkpoints"):
        folder = folder / "checkpoints"
    elif not (os.path.isdir(folder) and steps_in(folder)):
        reason = why_unreadable(folder) or "which is no run"
        raise InputError(
            f"checkpoint: {checkpoint}, for '{given}', {reason}; accepted: with a run's folder"
        )
    return RunNetwork(_choose(folder, checkpoint), network)


def _choose(folder: Path, checkpoint: int | str) -> Checkpoint:
    steps = steps_in(folder)
    if steps and checkpoint == NEWEST:
        newest = load_newest(folder)
        assert newest is not None  # there are steps
        return newest
    if str(checkpoint) in map(str, steps):  # also as text, as a command line has it
        return read_checkpoint(folder / str(checkpoint))
    if not steps:
        raise InputError(f"checkpoint: {checkpoint}; '{folder}' has none yet")
    raise InputError(
        f"checkpoint: {checkpoint}; accepted: {NEWEST} or {', '.join(map(str, steps))}, those in "
        f"'{folder}'"
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint, be it whole or not."""
    named = folder.name.isdecimal() and folder.absolute().parent.name == "checkpoints"
    return os.path.isdir(folder) and (named or os.path.isfile(folder / MANIFEST))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, however far it came."""
    return os.path.isfile(folder / "config.yaml") and os.path.isdir(folder / "checkpoints")


def why_no_model(folder: Path) -> str:
    """What a folder holds in which there is no exported model, and what its user can do."""
    if reason := why_unreadable(folder):
        return reason
    if is_run(folder):
        return _unfinished(folder)
    if steps := steps_in(folder):
        return (
            f"a folder of checkpoints; accepted: one of them, such as '{folder / str(steps[-1])}', "
            f"or --checkpoint {NEWEST}"
        )
    names = sorted(os.listdir(folder))
    return f"a folder with no exported models, which holds {shorten(names) or 'nothing'}"


def settings_of(config: str) -> dict[str, Any]:
    """The sections of a configuration's YAML; empty where it is none."""
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    content = content if isinstance(content, dict) else {}
    return {name: section for name, section in content.items() if isinstance(section, dict)}


def _unfinished(folder: Path) -> str:
    steps = steps_in(folder / "checkpoints")
    done, total = max([0, _last_step(folder), *steps[-1:]]), _total_steps(folder)
    path = shlex.quote(str(folder))
    command = f"franca-fast pretrain --config-file {path}/config.yaml --output-dir {path}"
    missing = "an exported model" if steps else "a checkpoint or an exported model"
    described = f"a run at step {done} of {total}, without {missing} yet; resume it"
    if not steps:
        return f"{described} ({command})"
    listed = ", ".join(map(str, steps))
    return (
        f"{described}, or use --checkpoint {NEWEST} or one of {listed} (in Python "
        f"checkpoint='{NEWEST}' or a step); {command} resumes it"
    )


def _total_steps(folder: Path) -> int | str:
    """The length of a run, as `config.total_steps` has it."""
    try:
        sections = settings_of((folder / "config.yaml").read_text(encoding="utf-8"))
        train, epochs = sections["train"], sections["optim"]["epochs"]
        return int(train["total_steps"] or epochs * train["OFFICIAL_EPOCH_LENGTH"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown number"


def _last_step(folder: Path) -> int:
    """The last step in a run's metrics.jsonl, whose last line may be cut."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
