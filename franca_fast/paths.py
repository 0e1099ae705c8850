"""What a path, and the place that it leads to, will take; the errors are the system's."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MISSING = "no such file or folder"  # what `why_unreadable` says of it
_NAME_BYTES = 255  # of one name, in nearly every file system
_PROBED = 8192  # bytes; two blocks of most file systems


def shortened(name: str, n_bytes: int) -> str:
    """The beginning of a name, in whole characters, that takes at most so many bytes on a disk.

    Example:
        >>> shortened("père", 3)
        'pè'
    """
    name = name[:n_bytes]
    while len(os.fsencode(name)) > n_bytes:
        name = name[:-1]
    return name


def longest_name(folder: Path) -> int:
    """Bytes of the longest name that a folder, which may be missing, takes."""
    with suppress(OSError):
        return min(_NAME_BYTES, os.pathconf(_standing(folder), "PC_NAME_MAX"))
    return _NAME_BYTES


def behind_links(path: str | os.PathLike[str]) -> Path:
    """The file that is written when a path is: where it is a link, what that leads to."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


@contextmanager
def utf8_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path in UTF-8 to a file or folder that exists, for libraries that take no other names.

    It is the path itself, or else a link elsewhere, which is gone after the block.
    """
    name = os.path.basename(path).encode("ascii", "replace").decode()
    if os.fspath(path).encode("utf-8", "replace").decode() == os.fspath(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="franca-fast-") as folder:
        link = Path(folder) / name.replace("?", "_")
        link.symlink_to(os.path.abspath(path))
        yield link


def status_of(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What stands at a path; None where nothing does.

    Raises:
        OSError: a loop of links, a name that is too long, or a folder that may not be searched.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        OSError: it cannot be made. Names the one that could not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        _standing(folder)  # says which file is in the way
        raise


def check_place(folder: Path, name: str = "") -> Path:
    """Tries whether a folder, which may be missing, can be written.

    A few kilobytes are written into the nearest folder that there is, in a file that has no name
    where the system can do that, and are gone afterwards, whatever happens.

    Args:
        folder: it is not made.
        name: of what will be written there.

    Returns:
        the folder that there is: this one, or the nearest above it.

    Raises:
        OSError: what making or writing the folder would raise.
    """
    standing = _standing(folder)
    limit = longest_name(standing)
    for part in (*folder.relative_to(standing).parts, name):
        if len(os.fsencode(part)) > limit:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    probe(standing)
    return standing


def probe(folder: Path) -> None:
    """Writes a few kilobytes to the disk of a folder and takes them away again.

    Raises:
        OSError: it cannot be written, or the disk is full. Names the folder.
    """
    try:
        with tempfile.TemporaryFile(prefix=".franca-fast-", dir=folder) as file:
            file.write(bytes(_PROBED))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = os.fspath(folder)
        raise


def check_replaceable(file: Path, status: os.stat_result) -> None:
    """Looks for what keeps a file from being replaced although its folder can be written.

    Args:
        file: no link.
        status: of the file.

    Raises:
        OSError: it cannot be changed (`chattr`), something is mounted on it, or it is another
            user's in a folder, such as /tmp, where only owners replace their files.
    """
    if os.path.ismount(file):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), os.fspath(file))
    try:
        os.close(os.open(file, os.O_WRONLY))  # changes nothing
    except OSError as error:
        # A file whose own permissions forbid to write it can still be replaced.
        if error.errno in (errno.EPERM, errno.EROFS):
            raise
    folder = os.stat(file.parent)
    owners = (0, status.st_uid, folder.st_uid)
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in owners:
        raise PermissionError(
            errno.EPERM, "another user's file, in a folder where only owners replace their files"
        )


def _standing(folder: Path) -> Path:
    """The nearest folder that there is, on the way up."""
    for place in (folder, *folder.parents):
        status = status_of(place)
        if status is None and not place.is_symlink():
            continue
        if status is None or not stat.S_ISDIR(status.st_mode):  # or a link to nothing
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(place))
        return place
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(folder))


def why_unreadable(path: str | os.PathLike[str]) -> str:
    """Says why a file or folder cannot be read; what is there but unreadable is not missing.

    A file's first byte is read, and a folder is listed; a pipe is not opened, which would wait.

    Returns:
        "" when it can be read; "no such file or folder" when nothing is there; else what the
        system says, for instance "permission denied" or "too many levels of symbolic links".

    Example:
        >>> why_unreadable("missing.pth")
        'no such file or folder'
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            os.listdir(path)
        elif stat.S_ISREG(mode):
            with open(path, "rb", buffering=0) as file:
                file.read(1)
        else:
            kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
            return f"a {kinds.get(stat.S_IFMT(mode), 'device')}, no file"
    except FileNotFoundError:
        missing_target = os.path.islink(path)
        return "a link to what is missing" if missing_target else MISSING
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:  # a zero byte, or letters that the file system cannot spell
        return "no name of a file"
    return ""
