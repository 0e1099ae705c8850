"""Indexes of large shards, kept on disk, so that their headers are not read by every run and rank.

They lie in `cache_folder()`, one file per shard, and hold only while the shard has the same size
and time of modification. A file that is damaged, or cannot be written, is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from franca_fast.data.accounting import Noted, Notes
from franca_fast.data.tar_index import TarNotes
from franca_fast.files import atomic_path, cache_folder

OFF_VARIABLE = "FRANCA_FAST_INDEX_CACHE"  # 0 turns the cache off
SMALLEST_SHARD = 16 << 20  # bytes; smaller shards are read as fast as the cache
_MAGIC = b"franca_fast index 3\n"
_SETTLED = 2.0  # seconds; a shard changed later than this ago may be changing still


class TarContents(NamedTuple):
    """What the headers of a tar say.

    Attributes:
        names: of the images, encoded, with a zero byte between two.
        places: int64 [n, 2] offsets and sizes of the images.
        label_places: int64 [n, 2 k], the same of at most k files with labels beside each image,
            size -1 where there is none.
        notes: what else was seen.
        problem: what is wrong with it; "" when nothing is.
        lost: images that are known to be lost.
    """

    names: bytes
    places: NDArray[np.int64]
    label_places: NDArray[np.int64]
    notes: TarNotes
    problem: str
    lost: int


def load_contents(path: str, status: os.stat_result) -> TarContents | None:
    """What the cache holds of a shard; None when that is nothing, or no longer true."""
    file = _file_of(path, status)
    if file is None:
        return None
    try:
        stored = file.read_bytes()
        if not stored.startswith(_MAGIC):
            return None
        unpacked = zlib.decompress(stored[len(_MAGIC) :])  # ends with a check sum of its own
        line, _, tables = unpacked.partition(b"\n")
        header = json.loads(line)
        if header["shard"] != _identity(path, status):
            return None
        n, length = int(header["images"]), int(header["names"])
        names, numbers = tables[:length], np.frombuffer(tables[length:], np.int64)
        columns = np.ascontiguousarray(numbers.reshape(2 + int(header["labels"]), n).T)
        places, label_places = np.split(columns, [2], 1)
        if n and (places.min() < 0 or places.sum(1).max() > status.st_size):
            return None
        left_out, remarks = _notes(header["left_out"]), _notes(header["remarks"])
        classes = [(int(start), list(known)) for start, known in header["classes"]]
        notes = TarNotes(int(header["found"]), left_out, remarks, classes)
        return TarContents(names, places, label_places, notes, header["problem"], header["lost"])
    except (OSError, ValueError, KeyError, TypeError, zlib.error, RecursionError):
        return None


def store_contents(path: str, status: os.stat_result, contents: TarContents) -> None:
    """Keeps what the headers of a shard say, if it is large enough and can be kept."""
    file = _file_of(path, status)
    if file is None or time.time() - status.st_mtime < _SETTLED:
        return
    header = {
        "shard": _identity(path, status),
        "images": len(contents.places),
        "names": len(contents.names),
        "labels": contents.label_places.shape[1],
        **asdict(contents.notes),
        "problem": contents.problem,
        "lost": contents.lost,
    }
    columns = np.concatenate([contents.places, contents.label_places], 1).T
    unpacked = json.dumps(header).encode() + b"\n" + contents.names
    unpacked += np.ascontiguousarray(columns).tobytes()
    with suppress(OSError), atomic_path(file) as temporary:
        temporary.write_bytes(_MAGIC + zlib.compress(unpacked, 1))


def _notes(stored: dict[str, list[Any]]) -> Notes:
    return Notes({rule: Noted(int(total), tuple(names)) for rule, (total, names) in stored.items()})


def _file_of(path: str, status: os.stat_result) -> Path | None:
    """Where the cache keeps a shard's index; None if it does not."""
    if status.st_size < SMALLEST_SHARD or os.environ.get(OFF_VARIABLE) == "0":
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    with suppress(RuntimeError):  # no home folder
        return cache_folder() / "indexes" / name[:2] / f"{name[2:]}.index"
    return None


def _identity(path: str, status: os.stat_result) -> list[object]:
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]
