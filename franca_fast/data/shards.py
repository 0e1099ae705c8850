"""The parts of a data set: tar shards, compressed or not, and lists of image files.

A shard is indexed by reading names and places only.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from franca_fast.data.accounting import BadSample, Notes, Opened
from franca_fast.data.decoding import BadImage
from franca_fast.data.index_cache import TarContents, load_contents, store_contents
from franca_fast.data.samples import (
    MAX_IMAGE_BYTES,
    open_file,
    read_file,
)
from franca_fast.data.shard_index import MAX_LABEL_BYTES, ShardIndex, joined_names
from franca_fast.data.tar_index import Member, Read, TarDamage, TarNotes, TarSample, tar_samples
from franca_fast.spelling import unspell

# Compressed and streamed shards cannot be read at a place, so they are held in memory whole.
MAX_SHARD_BYTES_IN_MEMORY = 1 << 30
MISSING_SHARD, UNREADABLE_SHARD = "missing shard", "unreadable shard"  # nothing to be had from it
DAMAGED_SHARD = "damaged shard"  # the samples before the damage are used
_CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
PACKING_FILE = "packing.json"  # beside the shards of `pack_shards`: their settings and classes


class Shard(ABC):
    """A part of a data set whose samples are found together.

    Attributes:
        name: the path or command, for messages.
    """

    name: str
    early = False
    """Whether the index is small, and may be made long before it is needed."""

    @abstractmethod
    def index(self) -> ShardIndex:
        """Finds the samples. Damage is told in the index, never raised."""

    def seems_empty(self) -> bool:
        """Whether there is certainly no image, as far as a short look tells."""
        return not len(self.index())

    def size(self) -> int:
        """Bytes to look through for an index; 0 where there is nothing to look through."""
        return 0


class ImageFiles(Shard):
    """Image files of a folder, or any others.

    Args:
        name: for messages.
        root: folder that the names are relative to; "" for paths as they are.
        names: paths, in their fixed order.
        labels: class of each file, -1 if unknown; None when no file has one.
        class_names: of the classes 0, 1, ...
        left_out: images beside these that are not used.
    """

    def __init__(
        self,
        name: str,
        root: str,
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
        left_out: Notes | None = None,
    ) -> None:
        self.name = name
        table = None if labels is None else np.asarray(labels, np.int64)
        entries = () if left_out is None else tuple(left_out.listed(root.rstrip(os.sep), os.sep))
        found = len(names) + sum(entry.count for entry in entries)
        self._index = ShardIndex(
            b"\0".join(map(os.fsencode, names)),  # the disk's bytes, also where it is not UTF-8
            root,
            labels=table,
            classes=[(0, class_names)],
            opened=Opened(found, left_out=entries),
        )

    def index(self) -> ShardIndex:
        """The files that were found when the source was opened."""
        return self._index


class TarShard(Shard):
    """A `.tar` file, or one compressed with gzip.

    Args:
        path: the file.
        label: class of all its images (ImageNet-21K); None reads `.cls` and `.json` members.
        beside: images beside it that are left out, and have no other place to be counted.
    """

    def __init__(
        self, path: str, label: str | None = None, beside: tuple[BadSample, ...] = ()
    ) -> None:
        self.name, self._path, self._label, self._beside = path, path, label, beside
        self.early = path.lower().endswith(".tar")

    def size(self) -> int:
        """Bytes of the file."""
        try:
            return os.stat(self._path).st_size
        except OSError:
            return 0

    def seems_empty(self) -> bool:
        """Whether there is no image before the first damage."""
        try:
            with open_file(self._path) as file:
                if file.read(len(GZIP)) != GZIP:
                    read = _HeaderReader(file.fileno()).read
                    size = os.fstat(file.fileno()).st_size
                    return next(tar_samples(read, size), None) is None
        except (OSError, TarDamage):
            return True
        return super().seems_empty()

    def index(self) -> ShardIndex:
        """Reads the headers of the tar; the whole of it when it is compressed."""
        index = self._read_index()
        index.opened = index.opened.leaving_out(self._beside)
        return index

    def _read_index(self) -> ShardIndex:
        try:
            with open_file(self._path) as file:
                if file.read(len(GZIP)) == GZIP:
                    return self._index_memory(*gunzip(self._path))
                status = os.fstat(file.fileno())
                contents = load_contents(self._path, status)
                if contents is None:
                    contents = _contents(_HeaderReader(file.fileno()).read, status.st_size)
                    store_contents(self._path, status, contents)
                return self._index(contents)
        except FileNotFoundError:
            return self._empty(MISSING_SHARD, "")
        except OSError as error:
            return self._empty(UNREADABLE_SHARD, error.strerror or "")

    def _empty(self, reason: str, problem: str, lost: int = 0) -> ShardIndex:
        lost = max(1, lost, self._listed_images())
        damage = BadSample(self.name, reason, problem, count=lost, of=lost)
        return ShardIndex([], self._path, opened=Opened(lost, (damage,)))

    def _listed_images(self) -> int:
        """How many images the shard should have, as said by files beside it; 0 when unknown.

        These are `sizes.json` (shard -> samples, as pack_shards and WebDataset's users write it)
        and img2dataset's `<shard>_stats.json`.
        """
        folder, base = os.path.split(self._path)
        stem = base.split(".", 1)[0]
        for name, key in (("sizes.json", base), (f"{stem}_stats.json", "successes")):
            with suppress(OSError, ValueError, RecursionError, BadImage):
                listed = json.loads(read_file(os.path.join(folder, name)))
                if isinstance(listed, dict) and type(listed.get(key)) is int:
                    return max(0, listed[key])
        return 0

    def _index_memory(self, data: bytes | bytearray, problem: str) -> ShardIndex:
        contents = _contents(lambda o, size: bytes(data[o : o + size]), len(data))
        contents = contents._replace(problem=problem or contents.problem)
        view = memoryview(data)
        images = [
            bytes(view[offset : offset + min(size, MAX_IMAGE_BYTES)])
            for offset, size in contents.places.tolist()
        ]
        most = contents.label_places.shape[1] // 2
        label_data = [
            [bytes(view[o : o + min(max(size, 0), MAX_LABEL_BYTES)]) for o, size in pairs]
            for pairs in contents.label_places.reshape(len(images), most, 2).tolist()
        ]
        return self._index(contents, images, label_data)

    def _index(
        self,
        contents: TarContents,
        data: list[bytes] | None = None,
        label_data: list[list[bytes]] | None = None,
    ) -> ShardIndex:
        names, places, label_places, notes, problem, lost = contents
        found = len(places)
        skipped = list[BadSample]()
        if problem:
            lost = max(1, lost, self._listed_images() - found)
            if found:
                problem += f"; {lost} or more of its images are lost"
            elif not notes.found:
                return self._empty(UNREADABLE_SHARD, problem, lost)
            skipped.append(BadSample(self.name, DAMAGED_SHARD, problem, lost, lost + found))
        opened = Opened(
            notes.found + sum(entry.count for entry in skipped),
            tuple(skipped),
            tuple(notes.left_out.listed(self.name)),
            tuple(notes.remarks.listed(self.name)),
        )
        classes = notes.classes or [(0, packed_classes(self._path))]
        labels = None
        if self._label is not None:
            labels, classes = np.zeros(found, np.int64), [(0, [self._label])]
        return ShardIndex(
            names,
            self._path,
            data=data,
            places=places,
            label_places=label_places,
            label_data=label_data,
            classes=classes,
            labels=labels,
            opened=opened,
        )


class _HeaderReader:
    """Reads small pieces of a file, mostly forwards, with fewer system calls."""

    def __init__(self, descriptor: int, ahead: int = 4096) -> None:
        self._descriptor, self._ahead = descriptor, ahead
        self._start, self._piece = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._piece):
            self._piece = os.pread(self._descriptor, max(size, self._ahead), offset)
            self._start, begin = offset, 0
        return self._piece[begin : begin + size]


def _contents(read: Read, total: int) -> TarContents:
    """Walks over a tar."""
    samples, notes = list[TarSample](), TarNotes()
    problem, lost = "", 0
    try:
        for sample in tar_samples(read, total, notes):
            samples.append(sample)
    except TarDamage as error:
        problem, lost = str(error), error.lost
    images = [sample.image for sample in samples]
    most = max((len(sample.labels) for sample in samples), default=0)
    absent = Member("", 0, -1)
    labels = [member for sample in samples for member in (*sample.labels, *[absent] * most)[:most]]
    return TarContents(
        joined_names([image.name for image in images]),
        _places(images),
        _places(labels).reshape(len(images), 2 * most),
        notes,
        problem,
        lost,
    )


def packed_classes(shard: str) -> list[str]:
    """The names of the classes of a shard, as `pack_shards` wrote them beside it; or none."""
    folder, name = os.path.split(shard)
    try:
        packing = json.loads(read_file(os.path.join(folder, PACKING_FILE)))
        pattern, names = packing["settings"]["pattern"], packing["classes"]
        spelled = packing.get("version", 1) > 1
        head, _, tail = re.split(r"(%\d*d)", pattern)
        if not re.fullmatch(rf"{re.escape(head)}\d+{re.escape(tail)}", name):
            return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError, BadImage):
        return []
    known = isinstance(names, list) and all(isinstance(one, str) for one in names)
    if not known:
        return []
    return [unspell(one) for one in names] if spelled else names


def _places(members: list[Member]) -> NDArray[np.int64]:
    return np.array([member[1:] for member in members], np.int64).reshape(-1, 2)


def gunzip(file: str | BinaryIO) -> tuple[bytes | bytearray, str]:
    """Decompresses a file as far as it goes, up to the limit; and what is wrong with it."""
    with gzip.open(file) as stream:
        return read_limited(stream.read1)


def read_limited(read: Callable[[int], bytes]) -> tuple[bytes | bytearray, str]:
    """All that `read` gives, up to the limit, and what is wrong with it ("" when nothing is)."""
    data = bytearray()
    try:
        while piece := read(_CHUNK):
            data += piece
            if len(data) > MAX_SHARD_BYTES_IN_MEMORY:
                return b"", f"more than {MAX_SHARD_BYTES_IN_MEMORY >> 20} MiB; use plain .tar"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return data, str(error)
    return data, ""
