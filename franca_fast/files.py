"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from franca_fast.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VARIABLE = "FRANCA_FAST_CACHE"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed onto it when the block ends well.

    The file at `path` is therefore either the old one or the complete new one; when the block
    raises, or the process dies, nothing changes there. The parent folder is made when missing.

    Args:
        path: the file to write; an existing file is replaced.

    Raises:
        OSError: the folder cannot be made or written.

    Example:
        >>> with atomic_path("/tmp/note.txt") as temporary:
        ...     _ = temporary.write_text("complete")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{target.stem[:40]}-", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        make_durable(temporary)
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        # A full disk is noticed in a write, which knows no name; and nobody knows the temporary's.
        if error.errno is None:  # a library's own words
            raise OSError(errno.EIO, str(error), os.fspath(target)) from error
        if error.filename in (None, name):
            error.filename = os.fspath(target)
        raise
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


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


def check_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuses a file that could not be written, before the work that fills it.

    Returns:
        the path; nothing is made there.

    Raises:
        InputError: it exists and `overwrite` is false, or it is a folder.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"output: '{file}', a folder; accepted: a file")
    if file.exists() and not overwrite:
        raise InputError(f"output '{file}' exists; name another file, or ask to overwrite it")
    return file


def check_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuses a folder that could not be filled, before the work that fills it.

    Returns:
        the path; nothing is made there.

    Raises:
        InputError: it is a file, or it holds files and `overwrite` is false.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output: '{folder}', a file; accepted: a folder")
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise InputError(
            f"output '{folder}' is in use; name another folder, or ask to overwrite it"
        )
    return folder


def make_durable(path: Path) -> None:
    """Gives the file the permissions of a new one and forces its bytes to the disk."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
