"""Where samples lie: tar shards, compressed or piped ones, and lists of image files.

A shard is indexed by reading names and places only. A `SampleRef` is all that is needed to read
one sample, in any process; it is what the loader sends to its workers.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from franca_fast.data.decoding import BadImage, BadSample
from franca_fast.data.tar_index import Member, Read, TarDamage, TarSample, tar_samples

# Compressed and piped shards cannot be read at a place, so they are held in memory whole.
MAX_SHARD_BYTES_IN_MEMORY = 1 << 30
MISSING_SHARD, UNREADABLE_SHARD = "missing shard", "unreadable shard"  # nothing to be had from it
DAMAGED_SHARD = "damaged shard"  # the samples before the damage are used
MAX_IMAGE_BYTES = 256 << 20
_MAX_LABEL_BYTES = 1 << 20
_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"


class SampleRef(NamedTuple):
    """Where one image lies.

    Attributes:
        name: of the image: the member of a tar, or the path within a folder.
        path: the file to read.
        offset, size: the piece of that file, bytes; size -1 is the whole file.
        data: the bytes themselves when they cannot be read at a place (compressed shards).
    """

    name: str
    path: str
    offset: int = 0
    size: int = -1
    data: bytes | None = None

    @property
    def location(self) -> str:
        """The place as a person would name it, for the log."""
        return self.path if self.size < 0 else f"{self.path}:{self.name}"


class ShardIndex:
    """The samples of one shard, held compactly.

    Args:
        names: one per sample.
        path: the shard, or the folder when the names are of files in it.
        data: what the shard holds, when it cannot be read at a place.
        places: int64 [n, 2] offsets and sizes; None for whole files.
        label_places: int64 [n, 2] of the files with labels, size -1 where there is none.
        labels: int64 [n], when they are known without reading; -1 is unknown.
        damage: what is wrong with the shard, None when nothing is.

    Attributes:
        memory: bytes that the index holds.
    """

    def __init__(
        self,
        names: Sequence[str],
        path: str,
        *,
        data: bytes | None = None,
        places: NDArray[np.int64] | None = None,
        label_places: NDArray[np.int64] | None = None,
        labels: NDArray[np.int64] | None = None,
        damage: BadSample | None = None,
    ) -> None:
        # One object per name would take most of the memory when there are millions of them.
        self._names = "\0".join(names).encode("utf-8", "surrogateescape")
        zeros = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._starts = np.concatenate([[0], zeros + 1])
        self._ends = np.concatenate([zeros, [len(self._names)]])
        self._length = len(names)
        self._path, self._data = path, data
        self._places = places
        self._label_places = label_places
        self._labels = labels
        self.damage = damage
        tables = [self._starts, self._ends, places, label_places, labels]
        self.memory = len(data or b"") + len(self._names)
        self.memory += sum(table.nbytes for table in tables if table is not None)

    def __len__(self) -> int:
        return self._length

    def ref(self, i: int) -> SampleRef:
        """Where the i-th image lies."""
        name = self._names[self._starts[i] : self._ends[i]].decode("utf-8", "surrogateescape")
        if self._places is None:
            return SampleRef(name, os.path.join(self._path, name))
        return self._at(name, *self._places[i].tolist())

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
            return parse_label(read_sample(self._at("", offset, size)))
        except BadImage:
            return None

    def _at(self, name: str, offset: int, size: int) -> SampleRef:
        piece = None if self._data is None else self._data[offset : offset + size]
        return SampleRef(name, self._path, offset, size, piece)


class Shard(ABC):
    """A part of a data set whose samples are found together.

    Attributes:
        name: the path or command, for messages.
    """

    name: str

    @abstractmethod
    def index(self) -> ShardIndex:
        """Finds the samples. Damage is told in the index, never raised."""


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

    def index(self) -> ShardIndex:
        """Reads the headers of the tar; the whole of it when it is compressed."""
        try:
            with open(self._path, "rb", buffering=0) as file:
                if file.read(len(_GZIP)) == _GZIP:
                    return self._index_memory(*_gunzip(self._path))
                size = os.fstat(file.fileno()).st_size
                return self._index(_HeaderReader(file.fileno()).read, size)
        except FileNotFoundError:
            return ShardIndex([], self._path, damage=BadSample(self.name, MISSING_SHARD))
        except OSError as error:
            damage = BadSample(self.name, UNREADABLE_SHARD, error.strerror or "")
            return ShardIndex([], self._path, damage=damage)

    def _index_memory(self, data: bytes, problem: str) -> ShardIndex:
        return self._index(lambda o, size: data[o : o + size], len(data), data, problem)

    def _index(
        self, read: Read, total: int, data: bytes | None = None, problem: str = ""
    ) -> ShardIndex:
        samples: list[TarSample] = []
        try:
            for sample in tar_samples(read, total):
                samples.append(sample)
        except TarDamage as error:
            problem = problem or str(error)
        damage = None
        if problem:
            reason = DAMAGED_SHARD if samples else UNREADABLE_SHARD
            damage = BadSample(self.name, reason, problem)
        labels = label_places = None
        if self._label is not None:
            labels = np.full(len(samples), self._label)
        elif any(sample.label for sample in samples):
            absent = Member("", 0, -1)
            label_places = _places([sample.label or absent for sample in samples])
        return ShardIndex(
            [sample.image.name for sample in samples],
            self._path,
            data=data,
            places=_places([sample.image for sample in samples]),
            label_places=label_places,
            labels=labels,
            damage=damage,
        )


class PipeShard(TarShard):
    """A tar that a shell command writes to its output; only made when the user allows commands.

    Args:
        command: for the shell, without "pipe:".
    """

    def __init__(self, command: str) -> None:
        super().__init__(f"pipe:{command}")
        self._command = command

    def index(self) -> ShardIndex:
        """Runs the command and keeps its output in memory."""
        with subprocess.Popen(self._command, shell=True, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            data, problem = _read_limited(process.stdout.read)
            if problem:
                process.kill()
        if process.returncode and not problem:
            problem = f"the command ended with {process.returncode}"
        if data.startswith(_GZIP):
            data, unzip_problem = _gunzip(io.BytesIO(data))
            problem = problem or unzip_problem
        return self._index_memory(data, problem)


def read_sample(ref: SampleRef, files: OpenFiles | None = None) -> bytes:
    """Reads the bytes of a sample.

    Args:
        ref: where they lie.
        files: keeps shards open between calls.

    Raises:
        BadImage: the file cannot be read, ends early or is too large.
    """
    if ref.data is not None:
        return ref.data
    if ref.size > MAX_IMAGE_BYTES:
        raise BadImage("file too large", f"{ref.size} bytes")
    try:
        if ref.size < 0:
            return _read_file(ref.path)
        if files is not None:
            data = os.pread(files.descriptor(ref.path), ref.size, ref.offset)
        else:
            with open(ref.path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), ref.size, ref.offset)
    except OSError as error:
        raise BadImage("unreadable file", str(error.strerror)) from None
    if len(data) < ref.size:
        raise BadImage("unreadable file", "it ends early")
    return data


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_IMAGE_BYTES:
            raise BadImage("file too large", f"{size} bytes")
        return file.read()


class OpenFiles:
    """Keeps the files used last open, for reading at a place.

    Args:
        most: number of open files at most.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def descriptor(self, path: str) -> int:
        """The descriptor of an open file; it stays valid until `most` others were asked for.

        Raises:
            OSError: the file cannot be opened.
        """
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
            return self._descriptors[path]
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._descriptors[path] = descriptor
        if len(self._descriptors) > self._most:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes all of them."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def parse_label(data: bytes) -> int | None:
    """The class in a `.cls` file (a number) or a `.json` file ("label", "cls" or "class").

    Example:
        >>> parse_label(b"7"), parse_label(b'{"label": 3}'), parse_label(b"cat")
        (7, 3, None)
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in ("label", "cls", "class") if key in value), None)
    return value if type(value) is int and 0 <= value < 2**31 else None


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


def _places(members: list[Member]) -> NDArray[np.int64]:
    return np.array([member[1:] for member in members], np.int64).reshape(-1, 2)


def _gunzip(file: str | BinaryIO) -> tuple[bytes, str]:
    """Decompresses a file as far as it goes, up to the limit; and what is wrong with it."""
    with gzip.open(file) as stream:
        return _read_limited(stream.read1)


def _read_limited(read: Callable[[int], bytes]) -> tuple[bytes, str]:
    """All that `read` gives, up to the limit, and what is wrong with it ("" when nothing is)."""
    pieces, length = list[bytes](), 0
    try:
        while piece := read(_CHUNK):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_SHARD_BYTES_IN_MEMORY:
                return b"", f"more than {MAX_SHARD_BYTES_IN_MEMORY >> 20} MiB; use plain .tar"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return b"".join(pieces), str(error)
    return b"".join(pieces), ""
