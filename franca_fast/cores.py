"""Cores that other programs use too: threads that wait for each other then sleep.

The threads of OpenMP, which PyTorch and the CPU kernels share, meet at the end of every operation.
Who is there first spins, which costs least where every thread has a core of its own. Once another
program runs on one of these cores, a thread waits for its turn there, all others spin for it, and
what they spin on are the cores that it could have: one busy process makes training on two cores
several times slower.

libgomp reads how long to spin (GOMP_SPINCOUNT) when it is loaded, but spins a hundred turns only, a
few microseconds, while a process has more OpenMP threads than cores. So threads that do nothing are
added for as long as this process has to wait for cores, and nothing is lost while it has not. The
work, its threads and its order stay what they were, and so does every bit of the results.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_TASKS = Path("/proc/self/task")
_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_PERIOD = 0.5  # seconds between two looks
# A thread that could run had no core for this share of the last period: others use the cores; for
# less than that share of the last _CALM_PERIODS: not any more. Measured on two cores: 0.32 to 0.52
# with a busy process, up to 0.2 in single periods without, 0.1 in the mean.
_BUSY, _CALM, _CALM_PERIODS = 0.25, 0.15, 4

logger = logging.getLogger(__name__)

_Look = tuple[float, dict[str, int]]


class share_cores:
    """Keeps the speed of PyTorch and the CPU kernels while other programs use the same cores.

    At once and, used as a context manager, until the block ends. A thread of this process looks
    every half second how long others had to wait for a core; while they do, OpenMP's threads wait
    for each other asleep. Results keep every bit, and undisturbed work its speed. The command line
    does this for every verb.

    It works with libgomp, which the wheels of PyTorch bring, on Linux; the OpenMP of Intel and LLVM
    yields its core by itself. Where GOMP_SPINCOUNT or OMP_WAIT_POLICY is set, that holds instead.
    PyTorch may have been imported before or not.

    Attributes:
        how: what it does here, in words.

    Example:
        >>> import franca_fast as ff
        >>> with ff.share_cores() as shared:
        ...     "threads" in shared.how
        True
    """

    def __init__(self) -> None:
        self._end = threading.Event()
        self._watch = threading.Thread(target=self._run, name="share_cores", daemon=True)
        policy = next((name for name in _POLICIES if name in os.environ), None)
        if policy is not None:
            self.how = f"threads wait for each other as {policy} says"
        elif not _looks_work():
            self.how = "threads that wait for a core are not seen here; GOMP_SPINCOUNT=1000 helps"
        else:
            self.how = "while other programs use the cores, threads wait for each other asleep"
            self._watch.start()

    def __enter__(self) -> share_cores:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._watch.ident is not None:
            self._watch.join()

    def _run(self) -> None:
        looks = deque([_look()], maxlen=_CALM_PERIODS + 1)
        idle: _IdleThreads | None = None
        while not self._end.wait(_PERIOD):
            looks.append(_look())
            if idle is None:
                if _longest_wait(looks[-2], looks[-1]) > _BUSY:
                    idle = _IdleThreads()
                    looks = deque([looks[-1]], maxlen=looks.maxlen)
            elif len(looks) > _CALM_PERIODS and _longest_wait(looks[0], looks[-1]) < _CALM:
                idle.end()
                idle = None
        if idle is not None:
            idle.end()


class _IdleThreads:
    """Makes the OpenMP threads of this process more than its cores, until `end`.

    They belong to a thread that has entered a parallel region once and sleeps; when it ends,
    libgomp ends them too.
    """

    def __init__(self) -> None:
        self._end = threading.Event()
        self._owner = threading.Thread(target=self._run, name="idle OpenMP threads", daemon=True)
        self._owner.start()

    def end(self) -> None:
        self._end.set()
        self._owner.join()

    def _run(self) -> None:
        for path in _loaded("libgomp"):
            openmp = ctypes.CDLL(path)
            # Any function will do for the region; this one only reads.
            openmp.GOMP_parallel(
                openmp.omp_get_num_threads, None, openmp.omp_get_num_procs() + 1, 0
            )
            logger.info(
                "other programs use this machine's cores: threads wait for each other asleep "
                "until they are free again, with the same results",
                extra={"once_in_a_run": True},
            )
        self._end.wait()


def _loaded(name: str) -> set[str]:
    """Paths of the shared libraries of a name in this process: there may be more than one."""
    lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    paths = (line.split(maxsplit=5)[5] for line in lines if "/" in line)
    return {path for path in paths if re.match(rf"{name}\b.*\.so", os.path.basename(path))}


def _looks_work() -> bool:
    return (_TASKS / str(threading.get_native_id()) / "schedstat").exists()


def _look() -> _Look:
    """The time, and of each thread of this process the nanoseconds it waited for a core."""
    waits = {}
    for task in os.listdir(_TASKS):
        with suppress(OSError):  # a thread that has ended meanwhile
            waits[task] = int((_TASKS / task / "schedstat").read_text().split()[1])
    return time.monotonic(), waits


def _longest_wait(before: _Look, after: _Look) -> float:
    """The share of the time between two looks that some thread had to wait for a core."""
    waits = [wait - before[1][task] for task, wait in after[1].items() if task in before[1]]
    return max(waits, default=0) / 1e9 / (after[0] - before[0])
