"""Checkpoints: their form, and how they are verified and read, on any number of ranks.

A checkpoint is a folder `<step>/` with
- `rank-<r>.safetensors` from each rank that had something of its own: the rows that it held of
  `student.*`, `teacher.*` (`backbone.*`, `dino_head.*`, `ibot_head.*`), `losses.*` and
  `optimizer.<state>.*`. One process, and replicated ones, write one file with everything whole;
- `training.pt`: gradient scaler, position in the data, random states, counters;
- `manifest.json`: the step, the configuration, and size and SHA-256 of the other files.

So the file formats hold no code, and are read without running any: safetensors, JSON, and
`torch.load(weights_only=True)`. Any number of ranks reads what any number wrote: each takes the
rows that it needs. `training/checkpoints/writer.py` says how it gets there whole or not at all.

It is not torch.distributed.checkpoint, which also reads on any number of ranks what any number
wrote. Its index is a pickle, so that opening a file from elsewhere can run code, and its tensors
lie in files of its own that only it can read; ours open with safetensors alone. It keeps no
checksums, and it fills a folder in place; here one manifest vouches for every byte, and a folder
with a step's name is whole. So the newest whole checkpoint is known, and an exact resume with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.hub.weight_files import ROWS, open_safetensors

FORMAT = "franca_fast.checkpoint/2"
MANIFEST, TRAINING = "manifest.json", "training.pt"
_NETWORKS = ("student", "teacher", "losses")

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class DamagedCheckpoint(InputError):
    """A checkpoint is incomplete, altered or not a checkpoint."""


class Part(NamedTuple):
    """Some rows of a tensor.

    Attributes:
        rows: the tensor's rows from `start` on.
        start: number of the first of them.
        n_rows: rows of the whole tensor; None for a tensor that is whole here.
    """

    rows: Tensor
    start: int = 0
    n_rows: int | None = None


class Readers(Protocol):
    """Processes that read a checkpoint together; see `training.distributed.world.World`."""

    rank: int
    size: int

    def all_gather_object(self, value: _T) -> list[_T]:
        """The values of all of them, in the order of the ranks."""
        ...


class _Alone:
    rank, size = 0, 1

    def all_gather_object(self, value: _T) -> list[_T]:
        return [value]


class _Piece(NamedTuple):
    """Where some rows of a tensor lie."""

    file: Any
    start: int
    shape: tuple[int, ...]
    n_rows: int | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, its tensors still on the disk.

    Attributes:
        step: steps done when it was written.
        path: its folder.
        training: the content of `training.pt`.
        config: the configuration's YAML.
    """

    step: int
    path: Path
    training: dict[str, Any]
    config: str
    _pieces: dict[str, list[_Piece]] = field(repr=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, whole."""
        shapes = {}
        for name, (piece, *_) in self._pieces.items():
            head = piece.shape[:1] if piece.n_rows is None else (piece.n_rows,)
            shapes[name] = (*head, *piece.shape[1:])
        return shapes

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some of its rows, on the CPU.

        Raises:
            DamagedCheckpoint: rows that no file holds.
        """
        pieces = self._pieces[name]
        if pieces[0].n_rows is None:
            whole = pieces[0].file.get_tensor(name)
            return whole if rows is None else whole[rows]
        rows = slice(0, pieces[0].n_rows) if rows is None else rows
        found, at = [], rows.start
        for piece in sorted(pieces, key=lambda piece: piece.start):
            end = min(rows.stop, piece.start + piece.shape[0])
            if piece.start <= at < end:
                found.append(piece.file.get_slice(name)[at - piece.start : end - piece.start])
                at = end
        if at != rows.stop:
            raise DamagedCheckpoint(f"checkpoint '{self.path}' lacks rows of '{name}'")
        if not found:
            shape = (0, *pieces[0].shape[1:])
            return pieces[0].file.get_slice(name)[0:0].reshape(shape)
        return torch.cat(found)

    @property
    def model(self) -> dict[str, dict[str, Tensor]]:
        """State dicts of "student", "teacher" and "losses" (their centres), whole, in memory."""
        state: dict[str, dict[str, Tensor]] = {network: {} for network in _NETWORKS}
        for name in self._pieces:
            network, _, rest = name.partition(".")
            if network in state:
                state[network][rest] = self.read(name)
        return state


def load_newest(folder: Path, world: Readers | None = None) -> Checkpoint | None:
    """Opens the newest checkpoint that is whole; a damaged newer one is named in a warning.

    Args:
        folder: of all checkpoints.
        world: ranks that do this together: each verifies some of the files, all take the same.

    Returns:
        the checkpoint, or None when the folder has none.

    Raises:
        InputError: there are checkpoints but all are damaged.
    """
    world = world or _Alone()
    damaged: list[str] = []
    # Rank 0 decides what there is, since a network's file system may show others less.
    for step in reversed(world.all_gather_object(steps_in(folder))[0]):
        path = folder / str(step)
        checkpoint, error = None, None
        try:
            checkpoint = read_checkpoint(path, share=(world.rank, world.size))
        except DamagedCheckpoint as failure:
            error = str(failure)
        reasons = [reason for reason in world.all_gather_object(error) if reason is not None]
        if reasons or checkpoint is None:
            damaged.append(reasons[0])
            continue
        if world.rank == 0:
            for reason in damaged:
                logger.warning("%s; using checkpoint '%s' instead", reason, path)
        return checkpoint
    if damaged:
        raise InputError(f"no checkpoint in '{folder}' can be used: {'; '.join(damaged)}")
    return None


def read_checkpoint(path: Path, *, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    """Opens and verifies one checkpoint.

    Args:
        path: its folder.
        share: (i, n) verifies the checksums of every n-th file from the i-th on; sizes of all.

    Raises:
        DamagedCheckpoint: a file is missing, has another size or checksum, or is no tensor file.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r} is not {FORMAT!r}")
        for i, (name, expected) in enumerate(sorted(manifest["files"].items())):
            _verify(path / name, expected, checksum=i % share[1] == share[0])
        return Checkpoint(
            int(manifest["step"]),
            path,
            torch.load(path / TRAINING, map_location="cpu", weights_only=True),
            str(manifest["config"]),
            _open_tensors(path, manifest["files"]),
        )
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedCheckpoint(f"checkpoint '{path}' is damaged ({reason})") from error
    except FileNotFoundError as error:
        lost = f"lacks {Path(error.filename).name}"
        raise DamagedCheckpoint(f"checkpoint '{path}' is damaged ({lost})") from error
    except OSError as error:
        why = error.strerror or error
        raise DamagedCheckpoint(
            f"checkpoint '{path}' cannot be read ({why}: {error.filename})"
        ) from error


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending, damaged ones included."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def file_entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as the manifest lists them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _verify(path: Path, expected: Mapping[str, Any], *, checksum: bool) -> None:
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes instead of {expected['bytes']}")
    if checksum and file_entry(path) != expected:
        raise ValueError(f"{path.name} has another checksum than was written")


def _open_tensors(path: Path, files: Mapping[str, Any]) -> dict[str, list[_Piece]]:
    pieces: dict[str, list[_Piece]] = {}
    for name in sorted(files):
        if not name.endswith(".safetensors"):
            continue
        file = open_safetensors(path / name)
        parts = json.loads((file.metadata() or {})[ROWS])
        for key in file.keys():  # noqa: SIM118
            start, n_rows = parts.get(key, (0, None))
            shape = tuple(file.get_slice(key).get_shape())
            pieces.setdefault(key, []).append(_Piece(file, int(start), shape, n_rows))
    return pieces
