"""One sample: where it lies, and reading it.

A `SampleRef` is all that is needed to read one sample, in any process; it is what the loader sends
to its workers.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections import OrderedDict
from typing import NamedTuple

from franca_fast.data.decoding import BadImage

MAX_IMAGE_BYTES = 256 << 20


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


def read_sample(ref: SampleRef, files: OpenFiles | None = None) -> bytes:
    """Reads the bytes of a sample.

    Args:
        ref: where they lie.
        files: keeps shards open between calls.

    Raises:
        BadImage: the file cannot be read, ends early or is too large.
    """
    if ref.size > MAX_IMAGE_BYTES:
        raise BadImage("file too large", f"{ref.size} bytes")
    if ref.data is not None:
        return ref.data
    try:
        if ref.size < 0:
            return read_file(ref.path)
        if files is not None:
            data = os.pread(files.descriptor(ref.path), ref.size, ref.offset)
        else:
            with open_file(ref.path) as file:
                data = os.pread(file.fileno(), ref.size, ref.offset)
    except OSError as error:
        raise BadImage("unreadable file", str(error.strerror)) from None
    if len(data) < ref.size:
        raise BadImage("unreadable file", "it ends early")
    return data


def read_file(path: str) -> bytes:
    """Reads a whole file.

    Raises:
        BadImage: it is too large.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_IMAGE_BYTES:
            raise BadImage("file too large", f"{size} bytes")
        return file.readall()


def open_file(path: str) -> io.FileIO:
    """Opens a regular file for reading; anything else, such as a pipe, might never answer.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return io.FileIO(descriptor, "r")


class OpenFiles:
    """Keeps the files used last open, for reading at a place.

    Args:
        most: number of open files at most.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._files: OrderedDict[str, io.FileIO] = OrderedDict()

    def descriptor(self, path: str) -> int:
        """The descriptor of an open file; it stays valid until `most` others were asked for.

        Raises:
            OSError: the file cannot be opened.
        """
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path].fileno()
        self._files[path] = open_file(path)
        if len(self._files) > self._most:
            self._files.popitem(last=False)[1].close()
        return self._files[path].fileno()

    def close(self) -> None:
        """Closes all of them."""
        while self._files:
            self._files.popitem()[1].close()


def parse_label(data: bytes | memoryview) -> int | None:
    """The class in a `.cls` file (a number) or a `.json` file ("label", "cls" or "class").

    Example:
        >>> parse_label(b"7"), parse_label(b'{"label": 3}'), parse_label(b"cat")
        (7, 3, None)
    """
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in ("label", "cls", "class") if key in value), None)
    return value if type(value) is int and 0 <= value < 2**31 else None
