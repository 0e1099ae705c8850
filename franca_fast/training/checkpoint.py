"""Checkpoints: written whole or not at all, verified when read.

A checkpoint is a folder `<step>/` with
- `model.pt`: {"student": .., "teacher": .., "losses": ..}, each a state dict with the names
  `backbone.*`, `dino_head.*`, `ibot_head.*`;
- `training.pt`: optimizer, gradient scaler, position in the data, random states, counters;
- `manifest.json`: the step, the configuration, and size and SHA-256 of the other files.

It is written into a hidden temporary folder, forced to the disk and then renamed, so a folder
with a step's name is complete unless the disk itself lost something, which the checksums show.
Files are read with `torch.load(weights_only=True)`: they run no code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from franca_fast.errors import FrancaError, InputError

_FORMAT = "franca_fast.checkpoint/1"
_MANIFEST = "manifest.json"
_TEMPORARY, _REMOVED = ".tmp-", ".removed-"

logger = logging.getLogger(__name__)


class CheckpointError(FrancaError):
    """A checkpoint could not be written; earlier ones are as they were."""


class DamagedCheckpoint(InputError):
    """A checkpoint is incomplete, altered or not a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read into memory on the CPU.

    Attributes:
        step: steps done when it was written.
        path: its folder.
        model: the content of `model.pt`.
        training: the content of `training.pt`.
        config: the configuration's YAML.
    """

    step: int
    path: Path
    model: dict[str, Any]
    training: dict[str, Any]
    config: str


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    config: str,
    keep: int,
) -> Path:
    """Writes `folder/<step>/` and removes the oldest ones beyond `keep`.

    Args:
        folder: the folder of all checkpoints.
        step: steps done.
        model: tensors, see the module's description.
        training: tensors, numbers, strings, bytes, and lists, tuples and dictionaries of them.
        config: the configuration's YAML.
        keep: how many to keep, this one included.

    Returns:
        the checkpoint's folder.

    Raises:
        CheckpointError: it could not be written (disk full, for instance).
    """
    temporary = folder / f"{_TEMPORARY}{step}-{os.getpid()}"
    target = folder / str(step)
    try:
        temporary.mkdir(parents=True)
        files = {
            name: _write(temporary / name, content)
            for name, content in (("model.pt", model), ("training.pt", training))
        }
        manifest = {"format": _FORMAT, "step": step, "files": files, "config": config}
        with (temporary / _MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2)
            _force(file)
        _force_folder(temporary)
        if target.exists():
            _remove(target)
        temporary.rename(target)
        _force_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        left = steps_in(folder)
        kept = f"the checkpoint of step {left[-1]} is kept" if left else "there is no earlier one"
        raise CheckpointError(
            f"checkpoint '{target}' could not be written: {error.strerror or error}; {kept}"
        ) from error
    for old in steps_in(folder)[:-keep]:
        _remove(folder / str(old))
    return target


def load_newest(folder: Path) -> Checkpoint | None:
    """Reads the newest checkpoint that is whole; a damaged newer one is named in a warning.

    Returns:
        the checkpoint, or None when the folder has none.

    Raises:
        InputError: there are checkpoints but all are damaged.
    """
    damaged: list[str] = []
    for step in reversed(steps_in(folder)):
        path = folder / str(step)
        try:
            checkpoint = read_checkpoint(path)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            logger.warning("%s; using checkpoint '%s' instead", reason, path)
        return checkpoint
    if damaged:
        raise InputError(f"no checkpoint in '{folder}' can be used: {'; '.join(damaged)}")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing, has another size or checksum, or is no tensor file.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']!r} is not {_FORMAT!r}")
        contents = {}
        for name in ("model.pt", "training.pt"):
            _verify(path / name, manifest["files"][name])
            contents[name] = torch.load(path / name, map_location="cpu", weights_only=True)
        return Checkpoint(
            int(manifest["step"]),
            path,
            contents["model.pt"],
            contents["training.pt"],
            str(manifest["config"]),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedCheckpoint(f"checkpoint '{path}' is damaged ({reason})") from error


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending, damaged ones included."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left half written or half removed."""
    for entry in folder.iterdir():
        if entry.name.startswith((_TEMPORARY, _REMOVED)):
            shutil.rmtree(entry, ignore_errors=True)


class _HashingFile:
    """A file for `torch.save` that also sums up what it wrote."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self._size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._sum.update(data)
        self._size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def entry(self) -> dict[str, Any]:
        return {"bytes": self._size, "sha256": self._sum.hexdigest()}


def _write(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        try:
            torch.save(dict(content), hashing)  # type: ignore[arg-type]
        except RuntimeError:
            # torch wraps a failed write in an error of its own.
            if hashing.error is not None:
                raise hashing.error from None
            raise
        _force(file)
        return hashing.entry()


def _verify(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes instead of {expected['bytes']}")
    if _entry_of(path) != expected:
        raise ValueError(f"{path.name} has another checksum than was written")


def _entry_of(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as the manifest lists them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _force(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _force_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Removes a checkpoint; renamed first, so that half of one is never taken for one."""
    hidden = path.with_name(f"{_REMOVED}{path.name}-{os.getpid()}")
    with suppress(OSError):
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
