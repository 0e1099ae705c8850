"""The parts of a data set: tar shards, compressed or not, and lists of image files.

A shard is indexed by reading names and places only.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from franca_fast.data.accounting import BadSample
from franca_fast.data.decoding import BadImage
from franca_fast.data.index_cache import TarContents, load_contents, store_contents
from franca_fast.data.samples import (
    MAX_IMAGE_BYTES,
    SampleRef,
    open_file,
    parse_label,
    read_file,
    read_sample,
)
from franca_fast.data.tar_index import Member, Read, TarDamage, TarSample, tar_samples

# Compressed and streamed shards cannot be read at a place, so they are held in memory whole.
MAX_SHARD_BYTES_IN_MEMORY = 1 << 30
MISSING_SHARD, UNREADABLE_SHARD = "missing shard", "unreadable shard"  # nothing to be had from it
DAMAGED_SHARD = "damaged shard"  # the samples before the damage are used
_MAX_LABEL_BYTES = 1 << 20
_CHUNK = 1 << 20
GZIP = b"\x1f\x8b"


class ShardIndex:
    """The samples of one shard, held compactly.

    Args:
        names: one per sample; or all of them, encoded, with a zero byte between two.
        path: the shard, or the folder when the names are of files in it.
        data: the n image files themselves, when they cannot be read at a place.
        places: int64 [n, 2] offsets and sizes; None for whole files.
        label_places: int64 [n, 2] of the files with labels, size -1 where there is none.
        labels: int64 [n], when they are known without reading; -1 is unknown.
        damage: what is wrong with the shard, None when nothing is.

    Attributes:
        memory: bytes that the index holds.
        data, damage: as given.
    """

    def __init__(
        self,
        names: Sequence[str] | bytes,
        path: str,
        *,
        data: Sequence[bytes] | None = None,
        places: NDArray[np.int64] | None = None,
        label_places: NDArray[np.int64] | None = None,
        labels: NDArray[np.int64] | None = None,
        damage: BadSample | None = None,
    ) -> None:
        # One object per name would take most of the memory when there are millions of them.
        self._names = names if isinstance(names, bytes) else joined_names(names)
        zeros = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._starts = np.concatenate([[0], zeros + 1])
        self._ends = np.concatenate([zeros, [len(self._names)]])
        self._length = len(self._ends) if self._names else 0
        self._path, self.data = path, data
        self._places = places
        self._label_places = label_places
        self._labels = labels
        self.damage = damage
        tables = [self._starts, self._ends, places, label_places, labels]
        self.memory = sum(map(len, data or ())) + len(self._names)
        self.memory += sum(table.nbytes for table in tables if table is not None)

    def __len__(self) -> int:
        return self._length

    def ref(self, i: int) -> SampleRef:
        """Where the i-th image lies."""
        name = self._names[self._starts[i] : self._ends[i]].decode("utf-8", "surrogateescape")
        if self._places is None:
            return SampleRef(name, os.path.join(self._path, name))
        data = None if self.data is None else self.data[i]
        offset, size = self._places[i].tolist()
        return SampleRef(name, self._path, offset, size, data)

    def label(self, i: int) -> int | None:
        """The class of the i-th image, read from the shard if need be; None when unknown."""
        if self._labels is not None:
            return None if self._labels[i] < 0 else int(self._labels[i])
        if self._label_places is None or self._label_places[i, 1] < 0:
            return None
        offset, size = self._label_places[i].tolist()
        if size > _MAX_LABEL_BYTES:
            return None
        try:
            return parse_label(read_sample(SampleRef("", self._path, offset, size)))
        except BadImage:
            return None


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
    """

    def __init__(
        self, name: str, root: str, names: Sequence[str], labels: Sequence[int] | None = None
    ) -> None:
        self.name = name
        table = None if labels is None else np.asarray(labels, np.int64)
        self._index = ShardIndex(names, root, labels=table)

    def index(self) -> ShardIndex:
        """The files that were found when the source was opened."""
        return self._index


class TarShard(Shard):
    """A `.tar` file, or one compressed with gzip.

    Args:
        path: the file.
        label: class of all its images (ImageNet-21K); None reads `.cls` and `.json` members.
    """

    def __init__(self, path: str, label: int | None = None) -> None:
        self.name, self._path, self._label = path, path, label
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
        return ShardIndex([], self._path, damage=damage)

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
        labels = None
        if contents.label_places is not None:
            places = contents.label_places.tolist()
            labels = [parse_label(view[o : o + size]) if size >= 0 else None for o, size in places]
        return self._index(contents._replace(label_places=None), images, labels)

    def _index(
        self,
        contents: TarContents,
        data: list[bytes] | None = None,
        labels: list[int | None] | None = None,
    ) -> ShardIndex:
        names, places, label_places, problem, lost = contents
        found = len(places)
        if problem and not found:
            return self._empty(UNREADABLE_SHARD, problem, lost)
        damage = None
        if problem:
            lost = max(1, lost, self._listed_images() - found)
            problem += f"; {lost} or more of its images are lost"
            damage = BadSample(self.name, DAMAGED_SHARD, problem, lost, lost + found)
        classes = None
        if self._label is not None:
            classes, label_places = np.full(found, self._label), None
        elif labels is not None:
            classes = np.array([-1 if label is None else label for label in labels], np.int64)
        return ShardIndex(
            names,
            self._path,
            data=data,
            places=places,
            label_places=label_places,
            labels=classes,
            damage=damage,
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
    samples = list[TarSample]()
    problem, lost = "", 0
    try:
        for sample in tar_samples(read, total):
            samples.append(sample)
    except TarDamage as error:
        problem, lost = str(error), error.lost
    labels = None
    if any(sample.label for sample in samples):
        absent = Member("", 0, -1)
        labels = _places([sample.label or absent for sample in samples])
    images = [sample.image for sample in samples]
    names = joined_names([image.name for image in images])
    return TarContents(names, _places(images), labels, problem, lost)


def joined_names(names: Sequence[str]) -> bytes:
    """Names as `ShardIndex` keeps them."""
    return "\0".join(names).encode("utf-8", "surrogateescape")


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
