"""Writes checkpoints beside the training, whole or not at all.

The training stops only while its tensors are copied. A thread of each rank then writes the rank's
file into a hidden temporary folder and, when it is on the disk, a note of its checksum. Rank 0's
thread waits for all notes, writes the manifest, renames the folder and removes old checkpoints. A
folder with a step's name is therefore complete unless the disk itself lost something, which the
checksums show. Ranks meet in the folder alone: no collective runs beside those of the training.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from franca_fast.errors import FrancaError
from franca_fast.files import make_durable, save_safetensors
from franca_fast.hub.checkpoint_files import (
    FORMAT,
    MANIFEST,
    TRAINING,
    Part,
    file_entry,
    steps_in,
)
from franca_fast.hub.weight_files import ROWS
from franca_fast.training.distributed.world import World

_TEMPORARY, _REMOVED = ".tmp-", ".removed-"
_POLL_SECONDS = 0.02


class CheckpointError(FrancaError):
    """A checkpoint could not be written; earlier ones are as they were."""


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time.

    Args:
        folder: of all checkpoints.
        keep: how many to keep.
        world: the ranks, all of which see the folder.
        timeout_minutes: how long rank 0 waits for the files of the others.
    """

    def __init__(
        self, folder: Path, *, keep: int, world: World | None = None, timeout_minutes: float = 10.0
    ) -> None:
        self._folder, self._keep = folder, keep
        self._world = world or World()
        self._timeout = 60.0 * timeout_minutes
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._target = folder
        self._saves = 0
        self._given_up = threading.Event()

    @property
    def failed(self) -> bool:
        """Whether this rank could not write; `wait` says why."""
        return self._error is not None

    def save(
        self, step: int, tensors: Mapping[str, Part], training: Mapping[str, Any], config: str
    ) -> None:
        """Copies everything and begins to write `folder/<step>/`; waits for the one before.

        Args:
            step: steps done.
            tensors: what this rank writes; see `checkpoint_tensors`.
            training: numbers, strings, bytes, tensors, and lists, tuples and dictionaries of them;
                rank 0 writes its own.
            config: the configuration's YAML.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.wait()
        self._saves += 1
        self._target = self._folder / str(step)
        copies = {name: part._replace(rows=_copy(part.rows)) for name, part in tensors.items()}
        temporary = self._folder / f"{_TEMPORARY}{step}-{self._saves}"
        self._thread = threading.Thread(
            target=self._work, args=(temporary, step, copies, dict(training), config), daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Waits until the checkpoint begun last is on the disk.

        Raises:
            CheckpointError: it could not be written (disk full, for instance).
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            reason = getattr(error, "strerror", None) or error
            left = steps_in(self._folder)
            kept = (
                f"the checkpoint of step {left[-1]} is kept" if left else "there is no earlier one"
            )
            raise CheckpointError(
                f"checkpoint '{self._target}' could not be written: {reason}; {kept}"
            ) from error

    def give_up(self) -> None:
        """Waits for the parts of other ranks no longer: one of them could not write its own."""
        self._given_up.set()

    def close(self) -> None:
        """Ends the thread; a checkpoint that waits for other ranks is given up."""
        self.give_up()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, temporary: Path, step: int, *content: Any) -> None:
        try:
            self._write(temporary, step, *content)
        except BaseException as error:
            self._error = error
            if self._world.is_first:
                shutil.rmtree(temporary, ignore_errors=True)

    def _write(
        self,
        temporary: Path,
        step: int,
        tensors: Mapping[str, Part],
        training: Mapping[str, Any],
        config: str,
    ) -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        rank = self._world.rank
        entries = {}
        if tensors:
            name = f"rank-{rank:05d}.safetensors"
            _write_tensors(temporary / name, tensors)
            entries[name] = file_entry(temporary / name)
        if self._world.is_first:
            _write_training(temporary / TRAINING, training)
            entries[TRAINING] = file_entry(temporary / TRAINING)
        else:
            _write_json(temporary / f".note-{rank}", entries)
            return
        files = dict(entries)
        for other in range(1, self._world.size):
            files |= self._note(temporary / f".note-{other}", other)
        _write_json(
            temporary / MANIFEST, {"format": FORMAT, "step": step, "files": files, "config": config}
        )
        _force_folder(temporary)
        if self._target.exists():
            _remove(self._target)
        temporary.rename(self._target)
        _force_folder(self._folder)
        for old in steps_in(self._folder)[: -self._keep]:
            _remove(self._folder / str(old))

    def _note(self, path: Path, rank: int) -> dict[str, Any]:
        """What another rank says about its file, once it is written."""
        deadline = time.monotonic() + self._timeout
        while not path.exists():
            if self._given_up.is_set() or time.monotonic() > deadline:
                raise OSError(f"rank {rank} did not write its part")
            time.sleep(_POLL_SECONDS)
        entries = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return entries


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left half written or half removed."""
    for entry in folder.iterdir():
        if entry.name.startswith((_TEMPORARY, _REMOVED)):
            shutil.rmtree(entry, ignore_errors=True)


def _copy(tensor: Tensor) -> Tensor:
    """A copy in main memory that the training does not change."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu")


def _write_tensors(path: Path, tensors: Mapping[str, Part]) -> None:
    rows = {
        name: (part.start, part.n_rows) for name, part in tensors.items() if part.n_rows is not None
    }
    contiguous = {name: part.rows.contiguous() for name, part in tensors.items()}
    save_safetensors(contiguous, path, {ROWS: json.dumps(rows)})
    make_durable(path)


def _write_training(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        watched = _WatchedFile(file)
        try:
            torch.save(dict(content), watched)  # type: ignore[arg-type]
        except RuntimeError:
            # torch wraps a failed write in an error of its own.
            if watched.error is not None:
                raise watched.error from None
            raise
        _force(file)


class _WatchedFile:
    """A file for `torch.save` that keeps the error of a failed write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.flush = file.flush
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def _write_json(path: Path, content: Any) -> None:
    """Written under another name first: who waits for the file must not see half of it."""
    hidden = path.with_name(f".part{path.name}")
    with hidden.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        _force(file)
    hidden.rename(path)


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
