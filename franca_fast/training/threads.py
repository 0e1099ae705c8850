"""Fewer threads while other programs use the cores, for runs that ask for it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch

_STAT = Path("/proc/stat")
_PERIOD = 2.0  # seconds over which the use of the cores is measured
# Threads change when the cores left differ from them by more than this, so that what uses half of a
# core does not change them again and again.
_MARGIN = 0.75

logger = logging.getLogger(__name__)


class Threads:
    """As many threads of PyTorch and the CPU kernels as other processes leave cores for.

    Sums over fewer threads may be rounded in another way, so results depend on what else ran.

    Args:
        enabled: `train.fewer_threads_when_busy`, for a run on CPU; otherwise nothing is done.
    """

    def __init__(self, enabled: bool) -> None:
        self._most = torch.get_num_threads()
        self._enabled = enabled and self._most > 1 and _STAT.exists()
        self._last = cores_used() if self._enabled else None

    def adapt(self) -> None:
        """Between two steps: measures, and changes the number of threads if need be."""
        if self._last is None or time.monotonic() - self._last[0] < _PERIOD:
            return
        now = cores_used()
        seconds, used, own = (after - before for before, after in zip(self._last, now, strict=True))
        self._last = now
        cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
        others = max(0.0, used - own) / seconds
        left = min(cores - others, self._most)
        wanted = max(1, round(left))
        if wanted != threads and abs(left - threads) > _MARGIN:
            torch.set_num_threads(wanted)
            logger.info(
                "other programs use %.1f of %d cores: %d threads from now on, not %d",
                *(others, cores, wanted, threads),
            )

    def close(self) -> None:
        """Gives the process its threads back."""
        if self._enabled:
            torch.set_num_threads(self._most)


def cores_used() -> tuple[float, float, float]:
    """Seconds: the time, the work of the usable cores in sum, and this process's part of it."""
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in _STAT.read_text().splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, *others = map(int, fields[:8])
            ticks += user + nice + system + sum(others)
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
