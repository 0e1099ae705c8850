"""Child processes that take turns: they build everything first, and compute only when asked.

Two versions of a program, or two programs, so never compute at the same time, each has memory of
its own to measure, and whatever else the machine does hits both. The parent writes requests, one a
line, to the child's input; the child answers each with a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

ROOT = Path(__file__).resolve().parent.parent
_LAST_LINES = 15  # of what a child printed, in the message about its end


class ChildError(RuntimeError):
    """A child ended before it was told to."""


class Child:
    """The parent's side: a process that runs `python -m MODULE ARGUMENTS`.

    Args:
        name: for messages and tables.
        module: uses `Turns`.
        arguments: of the command line.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[str] = ()) -> None:
        self.name = name
        self._printed = tempfile.TemporaryFile("w+")  # noqa: SIM115
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    @cached_property
    def about(self) -> dict[str, Any]:
        """Its first answer, which it gives when everything is built and it could begin.

        Raises:
            ChildError: it ended before.
        """
        return self._answer()

    def ask(self, request: str = "step") -> dict[str, Any]:
        """One turn.

        Raises:
            ChildError: the child ended; what it printed last is in the message.
        """
        _ = self.about  # the answer before the first request
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading the answer says what it died of
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._printed.seek(0)
        last = "\n".join(self._printed.read().splitlines()[-_LAST_LINES:])
        raise ChildError(f"{self.name} ended with status {status}:\n{last}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._printed.close()


class Turns:
    """The child's side. What the program prints goes to stderr from here on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self, **answer: Any) -> str:
        """Answers the request before, and returns the next one.

        The process ends here when the parent is done: the loops of others would go on to write
        checkpoints.
        """
        print(json.dumps({**answer, "peak_bytes": peak_bytes()}), file=self._out, flush=True)
        request = sys.stdin.readline()
        if not request:
            os._exit(0)
        return request.strip()

    def batches(self, batch: Any, **about: Any) -> Iterator[Any]:
        """The same batch for each request; a step lasts until the next batch is asked for."""
        self.wait(**about)
        while True:
            begin = time.perf_counter()
            yield batch
            self.wait(seconds=time.perf_counter() - begin)


def take_turns(
    children: Sequence[Child], steps: int, warm_ups: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """The answers of all children to so many steps each, without those of the warm-ups.

    No step begins before all children are built.
    """
    for child in children:
        _ = child.about
    answers: dict[str, list[dict[str, Any]]] = {child.name: [] for child in children}
    for step in range(warm_ups + steps):
        for child in children:
            answer = child.ask()
            if step >= warm_ups:
                answers[child.name].append(answer)
    return answers


def started(stack: ExitStack, children: Mapping[str, tuple[str, Sequence[str]]]) -> list[Child]:
    """The children of {name: (module, arguments)}, which are built at the same time."""
    return [stack.enter_context(Child(name, *how)) for name, how in children.items()]


def peak_bytes() -> int:
    """The most memory that this process has had at a time.

    The kernel's account of a process would begin with that of its parent; this one does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
