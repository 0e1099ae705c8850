"""Writing files so that a reader never meets half of one, and nothing computed is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from franca_fast.errors import InputError, OutputError, error_line
from franca_fast.paths import (
    behind_links,
    check_place,
    check_replaceable,
    make_folder,
    probe,
    shortened,
    status_of,
)

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VARIABLE = "FRANCA_FAST_CACHE"
_TEMPORARY_BYTES = 40  # of a name, at the beginning of that of its temporary
_SUFFIX_BYTES = 32  # a longer suffix is none that a library would look at
_SYSTEM_ERROR = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)  # in a library's words
_Made = TypeVar("_Made")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed onto it when the block ends well.

    The file at `path` is therefore either the old one or the complete new one; when the block
    raises, or the process dies, nothing changes there. The parent folder is made when missing. A
    link stays one, and the file that it leads to is replaced.

    Args:
        path: the file to write; an existing file is replaced.

    Raises:
        OSError: the folder cannot be made or written; names `path` as it was given.

    Example:
        >>> with atomic_path("/tmp/note.txt") as temporary:
        ...     _ = temporary.write_text("complete")
    """
    handle, name = _make_beside(path, tempfile.mkstemp)
    os.close(handle)
    temporary, target = Path(name), behind_links(path)
    try:
        with _errors_of(path, temporary):
            yield temporary
            make_durable(temporary)
            status = status_of(target)
            if status is not None and not stat.S_ISDIR(status.st_mode):  # which a rename refuses
                _check_regular(status)
            temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def folder_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, for files that must be made under their own names.

    Raises:
        OSError: it cannot be made or written; names `path` as it was given.
    """
    folder = Path(_make_beside(path, tempfile.mkdtemp))
    try:
        with _errors_of(path, folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_prefix(path: Path) -> str:
    """How the name of a temporary that belongs to a path begins; the rest is random."""
    return f".{shortened(path.stem, _TEMPORARY_BYTES)}-"


def _make_beside(path: str | os.PathLike[str], make: Callable[..., _Made]) -> _Made:
    target = behind_links(path)
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= _SUFFIX_BYTES else ""
    try:
        make_folder(target.parent)
        return make(prefix=temporary_prefix(target), suffix=suffix, dir=target.parent)
    except OSError as error:
        if error.filename in map(str, target.parents):
            error.strerror = f"{error.strerror} ('{error.filename}')"
        error.filename = os.fspath(path)
        raise


@contextmanager
def _errors_of(path: str | os.PathLike[str], temporary: Path) -> Iterator[None]:
    """Lets errors of a temporary speak of the path that was given; others stay as they are.

    What a library says in words alone gets the number of the system's error behind it.
    """
    given = os.fspath(path)
    names = re.compile(rf"({re.escape(str(temporary))}|{re.escape(temporary.name)})[^\s'\"]*")
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        words = names.sub(lambda _: given, str(error.strerror or error))
        if error.errno is None:
            raise OSError(*_cause(words, temporary.parent), given) from error
        error.strerror = words
        # A full disk is noticed in a write, which knows no name; and nobody knows the temporary's.
        if error.filename is None or names.match(str(error.filename)):
            error.filename = given
            if error.filename2 is not None:  # of a rename
                del error.filename2
        raise


def _cause(words: str, folder: Path) -> tuple[int, str]:
    """The number and the words of the system's error behind one that has only words."""
    if found := _SYSTEM_ERROR.search(words):
        return int(found[1]), os.strerror(int(found[1]))
    try:
        probe(folder)
    except OSError as error:
        return error.errno or errno.EIO, str(error.strerror)
    return errno.EIO, words


def _check_regular(status: os.stat_result) -> None:
    """Keeps devices, pipes, and the file that this program prints to from being replaced."""
    ours = list[os.stat_result]()
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            ours.append(os.fstat(descriptor))
    if not stat.S_ISREG(status.st_mode) or any(os.path.samestat(status, own) for own in ours):
        raise OSError(errno.EINVAL, "a device, a pipe, or where this program prints")


def cache_folder() -> Path:
    """The folder that keeps downloaded weights and indexes of shards.

    FRANCA_FAST_CACHE where it is set, else `franca_fast` in XDG_CACHE_HOME or `~/.cache`.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "franca_fast"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically (see `atomic_path`)."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, atomically (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_torch(content: Any, path: str | os.PathLike[str]) -> None:
    """Writes what `torch.save` writes; to be used on an `atomic_path`.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full.
    """
    import torch

    with torch_file(path) as file:
        torch.save(content, file)


@contextmanager
def torch_file(path: str | os.PathLike[str]) -> Iterator[io.FileIO]:
    """Yields a file for torch to write an archive into; to be used on an `atomic_path`.

    Raises:
        OSError: the file cannot be written. Torch itself would end the process for some archives.
    """
    with _PatientFile(path, "wb") as file:
        yield file
    if file.trouble is not None:
        raise file.trouble


class _PatientFile(io.FileIO):
    """Takes all that is written, and remembers what went wrong first."""

    trouble: OSError | None = None

    def write(self, data: Any) -> int:
        rest = whole = memoryview(data).cast("B")
        while rest and self.trouble is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.trouble = error
        return len(whole)


def save_safetensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes tensors as safetensors; to be used on an `atomic_path`.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:  # how safetensors reports what is an OSError elsewhere
        raise OSError(str(error)) from error


def check_file(path: str | os.PathLike[str], *, overwrite: bool = False, n_bytes: int = 0) -> Path:
    """Refuses a file that could not be written, before the work that fills it.

    What stands there and above it is looked at, and a few kilobytes are written to the disk and
    taken away again.

    Args:
        path: the file; nothing is made there.
        overwrite: whether it may exist.
        n_bytes: its size where that is known, to be compared with the space that is free.

    Returns:
        the path.

    Raises:
        InputError: it exists and `overwrite` is false; it is a folder, a device or a pipe; or it
            cannot be written, whatever the reason.
    """
    given = os.fspath(path)
    with _refusing(given, "a file that can be written"):
        status, target = status_of(given), behind_links(path)
        if status is not None:
            if stat.S_ISDIR(status.st_mode):
                raise InputError(f"output: '{given}', a folder; accepted: a file")
            _check_regular(status)
            if not overwrite:
                raise InputError(
                    f"output: '{given}' exists; accepted: another file, or to overwrite it"
                )
            check_replaceable(target, status)
        _check_space(given, check_place(target.parent, target.name), n_bytes)
    return Path(path)


def check_folder(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    files: Iterable[str] = (),
    n_bytes: int = 0,
) -> Path:
    """Refuses a folder that could not be filled, before the work that fills it.

    Args:
        path: the folder; nothing is made there (see `check_file`).
        overwrite: whether it may hold files.
        files: names of those that will be written.
        n_bytes: the size of all where that is known.

    Returns:
        the path.

    Raises:
        InputError: it is a file; it holds files and `overwrite` is false; it cannot be made or
            written, whatever the reason; or one of `files` cannot be replaced.
    """
    given, folder = os.fspath(path), Path(path)
    with _refusing(given, "a folder that can be written"):
        status = status_of(given)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise InputError(f"output: '{given}' is a file; accepted: a folder")
        if status is not None and not overwrite and any(folder.iterdir()):
            raise InputError(
                f"output: '{given}' is in use; accepted: another folder, or to overwrite it"
            )
        _check_space(given, check_place(folder), n_bytes)
    for name in files:
        check_file(os.path.join(given, name), overwrite=overwrite)
    return folder


@contextmanager
def _refusing(given: str, accepted: str) -> Iterator[None]:
    """Makes a complaint about the path of what the system says."""
    try:
        if not given:  # as an unset variable of a shell leaves it; the current folder is '.'
            raise InputError(f"output: '', no name; accepted: {accepted}")
        if "\0" in given:  # of which the system is never asked
            raise OSError(errno.EINVAL, "with a null character")
        yield
    except InputError:
        raise
    except OSError as error:
        about = error.filename
        where = "" if about is None or Path(about) == Path(given) else f" ('{about}')"
        message = f"output: '{given}', {error.strerror}{where}; accepted: {accepted}"
        raise OutputError(message, error) from error
    except UnicodeEncodeError as error:
        raise InputError(f"output: {given!a}, no name of a file; accepted: {accepted}") from error


def _check_space(given: str, folder: Path, n_bytes: int) -> None:
    total, _, free = shutil.disk_usage(folder)
    if total and n_bytes > free:  # file systems that do not know have 0 of both
        raise InputError(
            f"output: '{given}', {n_bytes} bytes where {free} are free; accepted: a disk with room "
            "for them"
        )


def save_or_keep(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Writes the result of long work; when that fails, keeps it elsewhere and says where.

    The other place is a new folder with a private name in the home directory, in the system's
    folder for temporary files or in the current one: the first in which writing succeeds.

    Args:
        path: the file or folder that was asked for.
        write: writes the result at the path that it is given, complete or not at all.

    Raises:
        OutputError: it could not be written to `path`. Says why, and where it is kept.

    Example:
        >>> save_or_keep("/tmp/sum.json", lambda file: write_json(file, 3))
    """
    try:
        write(Path(path))
    except (OSError, InputError) as error:  # what a check found that was not there before, too
        why = error_line(error) if isinstance(error, OSError) else str(error)
        kept = _keep(Path(path).name, write)
        what = (
            f"kept as '{kept}'" if kept else f"lost, nor could it be kept in {', '.join(_places())}"
        )
        raise OutputError(f"{why}; what was computed is {what}", error, kept) from error


def _keep(name: str, write: Callable[[Path], object]) -> Path | None:
    for place in _places():
        with suppress(OSError, InputError):
            folder = tempfile.mkdtemp(prefix="franca-fast-kept-", dir=place)
            try:
                kept = Path(folder, name if name != ".." else "")
                write(kept)
                return kept
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return None


def _places() -> list[str]:
    """Folders that a user finds again; temporary ones may be emptied when a job ends."""
    places = [os.path.expanduser("~")]
    with suppress(OSError):
        places.append(tempfile.gettempdir())
    with suppress(OSError):
        places.append(os.getcwd())
    return places


def make_durable(path: Path) -> None:
    """Gives the file the permissions of a new one and forces its bytes to the disk."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
