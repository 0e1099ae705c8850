"""The folder of a session: it belongs to one session at a time, and to one device for ever."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.gpu import record

TEMPORARY = ".session-"


class RefusedError(Exception):
    """A session cannot have this folder; the message says why in one sentence."""


@contextlib.contextmanager
def taken(out: Path, device: str) -> Iterator[Path]:
    """Makes the folder and keeps other sessions out of it.

    Yields:
        An empty folder in it for temporary files, which a session that was killed leaves to the
        next one to clear.

    Raises:
        RefusedError: another session runs in it, or it holds a session on another device.
        OSError: it cannot be made or written.
    """
    if out.exists() and not out.is_dir():
        raise RefusedError(f"--out {out} is a file; a folder is needed")
    out.mkdir(parents=True, exist_ok=True)
    with (out / record.ROWS).open("ab") as rows:
        try:
            fcntl.flock(rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(f"--out {out} is in use by a session that still runs") from None
        except OSError:
            pass  # a filesystem without locks
        for other in record.devices(record.read(out)) - {device}:
            raise RefusedError(
                f"--out {out} holds a session with --device {other}, with which one with "
                f"--device {device} does not mix; name another folder"
            )
        _clear(out)
        try:
            yield Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=out))
        finally:
            _clear(out)


def _clear(out: Path) -> None:
    for folder in out.glob(f"{TEMPORARY}*"):
        shutil.rmtree(folder, ignore_errors=True)
