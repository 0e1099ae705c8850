"""Features kept on disk, under the name of everything that they depend on."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import Encoder, precision_of
from franca_fast.files import write_json
from franca_fast.paths import probe

_VERSION = 1  # of what features of the same key are
_ROWS, _COUNT = ".f32", ".json"  # rows one after the other, and what they are and how many
_ITEM_BYTES = 4


def weights_checksum(encoder: Encoder) -> str | None:
    """SHA-256 of all parameters and buffers with their names; None where there are none to see.

    Example:
        >>> len(weights_checksum(nn.Linear(2, 2)))
        64
    """
    if not isinstance(encoder, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def encoder_facts(encoder: Encoder, precision: str) -> dict[str, Any]:
    """What the features of an image depend on besides the image.

    Args:
        encoder: a module.
        precision: see `encoders.precision_of`.

    Raises:
        InputError: an encoder whose weights nobody can see.

    Example:
        >>> sorted(encoder_facts(nn.Linear(2, 2), "fp32"))
        ['architecture', 'precision', 'weights']
    """
    weights = weights_checksum(encoder)
    if weights is None:
        raise InputError(
            "features_cache: with an encoder that is no torch.nn.Module, so that nothing tells its "
            "weights; accepted: a module, or no cache"
        )
    return {
        "weights": weights,
        "architecture": repr(getattr(encoder, "config", type(encoder).__name__)),
        "precision": precision_of(encoder, precision),
    }


class FeatureCache:
    """A folder of features.

    Args:
        folder: made when missing.

    Raises:
        InputError: it cannot be made, or nothing can be written there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            if not os.fspath(folder):  # as an unset variable of a shell leaves it
                raise FileNotFoundError(errno.ENOENT, "no name")
            self.folder.mkdir(parents=True, exist_ok=True)
            probe(self.folder)
        except OSError as error:
            raise InputError(
                f"features_cache: '{folder}' ({error.strerror}); accepted: a folder that can be "
                "written"
            ) from error

    def path(self, facts: Mapping[str, Any], suffix: str) -> Path:
        """The file of features that depend on these facts; the same facts give the same file."""
        text = json.dumps({"version": _VERSION, **facts}, sort_keys=True, default=str)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{suffix}"

    def keep(
        self, facts: Mapping[str, Any], first: int, blocks: Iterable[Tensor]
    ) -> Iterator[Tensor]:
        """Passes blocks of rows on, and keeps them; a row counts once it is on the disk.

        Several processes may keep the same rows at once: each row has its place, nothing is ever
        taken away, and none counts rows that it does not know to be there.

        Args:
            facts: what the rows depend on.
            first: number of the first row given; what `done` told before it was computed.
            blocks: float32 [rows, ...] each, in order.

        Yields:
            the blocks.

        Raises:
            OSError: the disk is full.
        """
        file, done = self.path(facts, _ROWS), first
        with _to_be_filled(file) as stream:
            for block in blocks:
                rows = block.cpu().contiguous().numpy()
                begin = done * rows[0].nbytes
                done += len(rows)
                # A file that was taken away meanwhile gets no gap, which would be read as zeros.
                if begin <= stream.seek(0, os.SEEK_END):
                    stream.seek(begin)
                    _write_all(stream, rows, file)
                    count = {**facts, "row": rows.shape[1:], "rows": done}
                    write_json(self.path(facts, _COUNT), count)
                yield block

    def done(self, facts: Mapping[str, Any]) -> int:
        """How many rows are kept."""
        try:
            row, rows = self._count(facts)
            size = self.path(facts, _ROWS).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return rows if size >= rows * math.prod(row) * _ITEM_BYTES else 0  # it was cut off

    def kept(self, facts: Mapping[str, Any], n: int) -> Tensor:
        """The first n rows that are kept, float32 [n, ...], read when they are used."""
        row, _ = self._count(facts)
        rows = np.memmap(self.path(facts, _ROWS), np.float32, mode="c", shape=(n, *row))
        return torch.from_numpy(rows)

    def _count(self, facts: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
        """Shape of a row, and how many there are."""
        count = json.loads(self.path(facts, _COUNT).read_text("utf-8"))
        return tuple(map(int, count["row"])), int(count["rows"])


def _to_be_filled(file: Path) -> io.FileIO:
    """Opens a file as it is, or a new one, to be written at any place."""
    return io.FileIO(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "rb+")


def _write_all(stream: io.FileIO, rows: NDArray[np.float32], file: Path) -> None:
    rest = rows.data.cast("B")
    try:
        while rest:
            rest = rest[stream.write(rest) :]
        os.fsync(stream.fileno())
    except OSError as error:
        error.filename = os.fspath(file)
        raise
