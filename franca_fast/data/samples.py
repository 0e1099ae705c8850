"""One sample: where it lies, and reading it.

A `SampleRef` is all that is needed to read one sample, in any process; it is what the loader sends
to its workers.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
from collections import OrderedDict
from contextlib import suppress
from typing import Any, NamedTuple

from franca_fast.data.decoding import BadImage
from franca_fast.errors import FrancaError
from franca_fast.spelling import spell

MAX_IMAGE_BYTES = 256 << 20
Label = int | str
"""A class: its name, or its number where it has no name."""
_LABEL_KEYS = ("label", "cls", "class")
_LONGEST_CLASS = 255  # characters, as of a folder's name
_SHOWN = 60  # characters of a label that is not understood


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


class BadLabel(FrancaError):
    """A file beside an image that should say its class, and does not."""


def parse_label(data: bytes | memoryview) -> Label | None:
    """The class in a `.cls` file (a number or a name) or a `.json` file ("label", "cls", "class").

    Returns:
        the number, or the name; None when the file says nothing of a class, or -1.

    Raises:
        BadLabel: what it says is neither.

    Example:
        >>> parse_label(b"7"), parse_label(b'{"label": 3}'), parse_label(b"cat")
        (7, 3, 'cat')
    """
    encoding = "utf-16" if bytes(data[:2]) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    errors = "replace" if encoding == "utf-16" else "surrogateescape"
    text = bytes(data).decode(encoding, errors).strip(" \t\r\n\0")
    value: Any = text
    if text[:1] in ("{", "[", '"'):
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
    if value == "null":
        value = None
    if isinstance(value, dict):
        said = [value[key] for key in _LABEL_KEYS if value.get(key) is not None]
        value = said[0] if said else None
    if isinstance(value, str):
        value = _label_in_words(value.strip())
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == -1:  # as data sets mark images without a class
        return None
    if type(value) is str or (type(value) is int and 0 <= value < 2**31):
        return value
    raise BadLabel(repr(spell(text[:_SHOWN])))


def _label_in_words(text: str) -> Any:
    """A number where the words are one, a class's name where they can be one, else a list."""
    if re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]*)?", text):
        return float(text) if "." in text else int(text)
    is_name = 0 < len(text) <= _LONGEST_CLASS and not re.search(r"^[{[\"]|[\x00-\x1f\x7f]", text)
    return text if is_name else [text]
