"""Shards that come through a pipe: over HTTP, from object stores, or from a shell command.

WebDataset's openers (`webdataset.gopen`) start a program that writes the shard to its output: curl,
aws or gsutil, to which the URL is one argument and never part of a shell's command line. So a URL
can only make them read; `pipe:`, which is a shell's command line, needs the user's word.
"""

from __future__ import annotations

import io
import re
import shutil
from typing import Any

from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.shards import (
    GZIP,
    UNREADABLE_SHARD,
    TarShard,
    gunzip,
    read_limited,
)
from franca_fast.errors import InputError

_PROGRAMS = {"http": "curl", "https": "curl", "s3": "aws", "gs": "gsutil"}


def is_remote(path: str) -> bool:
    """Whether something is a URL or `pipe:COMMAND`, and no local path.

    Example:
        >>> is_remote("s3://bucket/a.tar"), is_remote("pipe:cat a.tar"), is_remote("ImageNet:x=y")
        (True, True, False)
    """
    return re.match(r"pipe:|[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None


class RemoteShard(TarShard):
    """A tar that a program writes to its output, compressed with gzip or not.

    It cannot be read at a place, so all its images are held in memory.

    Args:
        url: `http://`, `https://`, `s3://`, `gs://`, or `pipe:` and a shell command.
        allow_pipe: whether `pipe:` may run commands.

    Raises:
        InputError: a URL of another kind, a command that is not allowed, or a program that is not
            installed.
    """

    def __init__(self, url: str, *, allow_pipe: bool = False) -> None:
        super().__init__(url)
        self.early = False
        scheme, _, rest = url.partition(":")
        if scheme == "pipe":
            self._program = "the command"
            if not allow_pipe:
                raise InputError(f"source: {url}; accepted: commands with allow_pipe=True only")
            return
        self._program = _PROGRAMS.get(scheme, "")
        if not self._program:
            accepted = ", ".join(f"{scheme}://" for scheme in _PROGRAMS)
            raise InputError(f"source: {url}; accepted: local paths, {accepted} and pipe:COMMAND")
        # Wildcards and lists would make curl and gsutil send several shards as one; blanks end what
        # curl reads; and a quote ended the argument in versions of WebDataset that used a shell.
        if re.search(r"[][{}*'\x00-\x20\x7f]", rest) or (scheme == "gs" and "?" in rest):
            raise InputError(
                f"source: {url!r}; accepted: URLs without wildcards, brackets, quotes and blanks "
                "(braces with ranges or lists stand for several)"
            )
        if shutil.which(self._program) is None:
            raise InputError(
                f"source: {url}; accepted: local paths, as '{self._program}', which reads "
                f"{scheme}://, is not installed"
            )

    def seems_empty(self) -> bool:
        """Never: nothing is fetched only to look."""
        return False

    def index(self) -> ShardIndex:
        """Fetches the shard into memory. One that breaks off is damaged, never a shorter one."""
        from webdataset.gopen import gopen, gopen_schemes, set_options

        gopen_schemes.setdefault("s3", _open_s3)
        try:
            stream = gopen(self.name)
        except (OSError, ValueError) as error:
            return self._empty(UNREADABLE_SHARD, str(error))
        set_options(stream, ignore_errors=True)  # its errors would lose what came before them
        data, problem = read_limited(stream.read)
        if problem and hasattr(stream, "proc"):
            stream.proc.kill()
        stream.close()
        status = getattr(stream, "status", 0)
        if status and not problem:
            problem = f"{self._program} ended with {status}"
        if data.startswith(GZIP):
            data, unzip_problem = gunzip(io.BytesIO(data))
            problem = problem or unzip_problem
        elif self._program == "curl" and data and not data.endswith(bytes(512)):
            # An old server does not tell the length, and curl then cannot see that it has not all.
            problem = problem or "it breaks off: its last block is not empty"
        return self._index_memory(data, problem)


def _open_s3(url: str, mode: str, bufsize: int, **options: Any) -> Any:
    """What WebDataset lacks beside its openers for HTTP and Google Cloud Storage."""
    from webdataset.gopen import Pipe

    if mode != "rb":
        raise ValueError(f"{url}: is only read")
    return Pipe(["aws", "s3", "cp", url, "-"], mode=mode, bufsize=bufsize)
