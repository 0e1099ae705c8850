"""Downloading one file: resumed where it stopped, checked, and never half there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from franca_fast.errors import InputError
from franca_fast.files import write_json, write_text

_BLOCK = 1 << 20
_TIMEOUT_S = 30.0
_ATTEMPTS = 5  # in a row, without a single new byte
_PAUSE_S = 1.0
_GONE = (404, 410)
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


class GoneError(InputError):
    """There is no file at the address."""


class _Interrupted(Exception):
    """The connection ended early; trying again may help."""


def download(
    address: str,
    target: Path,
    *,
    check: Callable[[Path], None] | None = None,
    sha256: str | None = None,
) -> Path:
    """Downloads a file to `target`, unless it is there.

    What has arrived is kept in `<target>.part`: when the connection breaks, the user interrupts or
    the disk is full, the next call goes on from there, provided that the server allows it and
    still has the same file. The file is moved to `target` only when its length is the one that the
    server announced, its hash is `sha256` where that is known, and `check` accepts it; otherwise
    it is deleted. Its hash is recorded in `<target>.sha256`, in the form that `sha256sum -c` reads.
    Callers hold `locked(target)`.

    Args:
        address: http or https.
        target: where the file shall be; its folder is made.
        check: raises InputError for a file that is not what was expected; gets the `.part` file.
        sha256: the file's known hash in hexadecimal.

    Returns:
        `target`.

    Raises:
        GoneError: no such file at the address.
        InputError: no connection, too little space, a file that does not pass. The message says
            what to do.
    """
    part, note = _beside(target, ".part"), _beside(target, ".part.json")
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    _fetch(address, part, note)
    try:
        if sha256 is not None and (found := file_sha256(part)) != sha256:
            raise InputError(f"its SHA-256 is {found} instead of {sha256}")
        if check is not None:
            check(part)
    except InputError as error:
        part.unlink()
        note.unlink()
        raise InputError(
            f"'{address}' gave a wrong or damaged file, which was deleted: {error}"
        ) from error
    record_sha256(part, target)
    part.replace(target)
    note.unlink()
    return target


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Makes other processes of this machine wait that want to write the same file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target, ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that downloads {target.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def record_sha256(file: Path, target: Path) -> None:
    """Records the hash of a file that is about to become `target`."""
    write_text(_beside(target, ".sha256"), f"{file_sha256(file)}  {target.name}\n")


def forget_download(target: Path) -> None:
    """Deletes a file that `download` brought; one that the user put there stays."""
    record = _beside(target, ".sha256")
    if record.is_file():
        target.unlink(missing_ok=True)
        record.unlink()


def recorded_sha256(target: Path) -> str | None:
    """The hash that `download` recorded beside a file, if it did."""
    record = _beside(target, ".sha256")
    return record.read_text(encoding="utf-8").split()[0] if record.is_file() else None


def _fetch(address: str, part: Path, note: Path) -> None:
    """Fills `part`; returns when it is as long as the server says."""
    failures = 0
    while True:
        before = _length(part)
        try:
            return _request(address, part, note)
        except (_Interrupted, http.client.HTTPException, OSError) as error:
            reason = _explain(error, address, part)
            failures = 0 if _length(part) > before else failures + 1
        if failures == _ATTEMPTS:
            raise _no_connection(address, reason, part)
        _say(f"{part.name}: {reason}; trying again")
        time.sleep(_PAUSE_S * 2**failures)


def _explain(error: Exception, address: str, part: Path) -> str:
    """Says why a request failed; raises when trying again cannot help."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code in _GONE:
            raise GoneError(f"no file at '{address}' (HTTP {error.code})") from error
        if error.code not in _RETRIED:
            raise InputError(f"'{address}' is refused (HTTP {error.code})") from error
        return f"HTTP {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    if isinstance(reason, socket.gaierror | ConnectionRefusedError | ssl.SSLCertVerificationError):
        raise _no_connection(address, said, part) from error
    return said


def _request(address: str, part: Path, note: Path) -> None:
    """One request for what is missing of a file."""
    known = _read_note(note, address)
    have = _length(part) if known else 0
    if have and have == known["size"]:
        return
    headers = {"User-Agent": "franca-fast", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known["validator"]:
            headers["If-Range"] = known["validator"]
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the file there is another one by now
            part.unlink()
            raise _Interrupted("the partial file does not fit; starting again") from error
        raise
    with response:
        start, size = _span(response)
        if start != have or (have and size != known["size"]):
            start = 0
            if response.status == 206:  # the end of something else than what we have
                part.unlink()
                raise _Interrupted("the partial file does not fit; starting again")
        write_json(note, {"address": address, "size": size, "validator": _validator(response)})
        _receive(response, part, start, size)
    length = _length(part)
    if size is not None and length > size:
        part.unlink()
        raise InputError(f"'{address}' sent {length} bytes instead of the announced {size}")
    if size is not None and length < size:
        raise _Interrupted(f"the connection ended after {length} of {size} bytes")


def _receive(response: IO[bytes], part: Path, start: int, size: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if size is not None and free < size - start:
        raise _no_space(part, f"{size - start} bytes are to come and {free} are free")
    with part.open("r+b" if start else "wb") as file, _progress(part, start, size) as advance:
        file.seek(start)
        while block := response.read(_BLOCK):
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _no_space(part, error.strerror) from error
                raise InputError(f"'{part}' cannot be written: {error.strerror}") from error
            advance(len(block))


def _span(response: Any) -> tuple[int, int | None]:
    """Where the body of a response starts in the file, and the length of the whole file."""
    if response.status == 206:
        # "bytes 100-199/200"
        span, _, size = response.headers.get("Content-Range", "").partition("/")
        start = span.removeprefix("bytes ").partition("-")[0]
        if start.isdigit() and size.isdigit():
            return int(start), int(size)
        return -1, None
    size = response.headers.get("Content-Length", "")
    return 0, int(size) if size.isdigit() else None


def _validator(response: Any) -> str | None:
    """What identifies this version of the file; a weak tag does not."""
    tag = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


def _read_note(note: Path, address: str) -> dict[str, Any]:
    """What was noted about a partial file; empty when it came from elsewhere."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(content, dict) and content.get("address") == address
    return content if ours else {}


def _no_connection(address: str, reason: str, part: Path) -> InputError:
    kept = _length(part)
    rest = f"; {kept} bytes are kept, and the next attempt goes on from there" if kept else ""
    return InputError(f"no connection to '{address}' ({reason}){rest}")


def _no_space(part: Path, reason: str | None) -> InputError:
    return InputError(
        f"no space in '{part.parent}' ({reason}); set FRANCA_FAST_CACHE to a folder with more"
    )


@contextmanager
def _progress(part: Path, start: int, size: int | None) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, a line for every tenth otherwise."""
    name = part.name.removesuffix(".part")
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=name) as bar:
            yield bar.update
        return
    done, tenths = start, 10 * start // size if size else 0
    _say(f"downloading {name}" + (f", {size / 1e6:.0f} MB" if size else ""))

    def advance(n_bytes: int) -> None:
        nonlocal done, tenths
        done += n_bytes
        if size and 10 * done // size > tenths:
            tenths = 10 * done // size
            _say(f"{name}: {tenths * 10}%")

    yield advance


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
