"""Chunked archives: a `.tar.gz`, whole or cut into parts, that holds one file of weights."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import re
import shutil
import string
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from franca_fast.errors import InputError
from franca_fast.files import atomic_path
from franca_fast.hub.file_kinds import GZIP, kind_of_file
from franca_fast.paths import why_unreadable

_ARCHIVE = re.compile(r"\.tar\.gz(\.part_[a-z]{2})?$")
_LARGEST = 64 << 30  # bytes of the unpacked file; the largest released one has less than 5 GB
_PADDING = 1 << 20  # what may follow the end of the archive
_BLOCK = 1 << 20


class NoSpaceError(InputError):
    """There is no room for what an archive holds."""


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path is spelt like an archive, one of its parts, or the start of their names."""
    return _ARCHIVE.search(os.fspath(path)) is not None


def archive_parts(path: str | os.PathLike[str]) -> list[Path]:
    """Finds the files of an archive, in order.

    Args:
        path: the whole archive, any of its parts, or the common start `....tar.gz` of their names.

    Raises:
        InputError: none is there, or one is missing between others.
    """
    given = Path(path)
    if os.path.lexists(given):
        if reason := why_unreadable(given) or ("a folder" if given.is_dir() else ""):
            raise InputError(f"archive '{given}': {reason}")
        if given.name.endswith(".tar.gz"):
            return [given]
    stem = given.name.partition(".part_")[0]
    parts = sorted(given.parent.glob(f"{stem}.part_??"))
    # As `split` names its parts: aa, ab, ..., az, ba, ...
    names = map("".join, itertools.product(string.ascii_lowercase, repeat=2))
    expected = [given.parent / f"{stem}.part_{name}" for name, _ in zip(names, parts, strict=False)]
    missing = [file.name for file in expected if file not in parts]
    if missing or not parts:
        what = f"lacks {missing[0]}" if missing else why_unreadable(given)
        raise InputError(f"archive '{given}': {what}")
    for part in parts:
        if reason := why_unreadable(part):
            raise InputError(f"archive '{part}': {reason}")
    return parts


def unpack(parts: Sequence[Path], target: Path) -> Path:
    """Unpacks the one `.pth` file of an archive, without holding it in memory.

    Only a single regular file is accepted, and its name in the archive decides nothing: it is
    written to `target`, complete or not at all. The archive's checksum is verified.

    Args:
        parts: files of the archive in order.
        target: where the file shall be.

    Returns:
        `target`.

    Raises:
        InputError: a damaged archive, one that holds anything else, or too little space.
    """
    source = f"archive '{parts[0]}'"
    with (
        atomic_path(target) as temporary,
        io.BufferedReader(_Joined(parts), _BLOCK) as joined,
        gzip.GzipFile(fileobj=joined) as unzipped,
    ):
        try:
            with tarfile.open(fileobj=unzipped, mode="r|") as tar:
                _extract(tar, temporary, source)
            # Only at the end of its stream does gzip compare the checksum.
            rest = unzipped.read(_PADDING)
        # Here and not further out, where a damaged stream, an OSError, looks like a failed write.
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            kind = kind_of_file(parts[0])
            what = f"damaged, or a part is missing at its end ({len(parts)} found; {error})"
            if kind not in (None, GZIP):
                what += f": it is {kind}"
            raise InputError(f"{source}: {what}") from error
        if len(rest) == _PADDING:
            raise InputError(f"{source}: more data follows its end")
    return target


@contextmanager
def unpacked(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Unpacks a local archive into a temporary folder for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="franca-fast-") as folder:
        yield unpack(archive_parts(path), Path(folder) / "weights.pth")


def _extract(tar: tarfile.TarFile, target: Path, source: str) -> None:
    found = False
    for member in tar:
        name = PurePosixPath(member.name)
        if member.isdir():
            continue
        if (
            not member.isreg()
            or name.suffix != ".pth"
            or name.is_absolute()
            or ".." in name.parts
            or found
        ):
            raise InputError(
                f"{source}: refused, it holds '{member.name}'; accepted: one .pth file"
            )
        free = shutil.disk_usage(target.parent).free
        if member.size > min(free, _LARGEST):
            raise NoSpaceError(
                f"{source}: unpacks to {member.size} bytes; {free} are free in '{target.parent}' "
                f"(TMPDIR or FRANCA_FAST_CACHE name another folder); accepted: up to {_LARGEST}"
            )
        content = tar.extractfile(member)
        assert content is not None  # only of what is no file
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file, _BLOCK)
        found = True
    if not found:
        raise InputError(f"{source}: holds no .pth file")


class _Joined(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts = iter(parts)
        self._file: io.FileIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        while True:
            if self._file is None:
                part = next(self._parts, None)
                if part is None:
                    return 0
                self._file = io.FileIO(part)
            if n_read := self._file.readinto(buffer):  # type: ignore[arg-type]
                return n_read
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
