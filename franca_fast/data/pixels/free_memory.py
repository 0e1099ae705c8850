"""How much memory is left: where it is overcommitted, asking for too much ends the process."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # of version 2, as containers and batch systems see their own


def free_memory() -> int | None:
    """Bytes that could be used now, by the machine and by the limit of its container.

    Returns:
        None where the system does not say.
    """
    known = [free for free in (_of_machine(), _of_cgroup()) if free is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    return _number_after("MemAvailable:", _MEMINFO, 1024)


def _of_cgroup() -> int | None:
    try:
        most = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # none there, or no limit: "max"
        return None
    reclaimable = _number_after("inactive_file", _CGROUP / "memory.stat", 1) or 0
    return max(0, most - used + reclaimable)


def _number_after(word: str, file: Path, unit: int) -> int | None:
    try:
        lines = file.read_text().splitlines()
        return next(unit * int(line.split()[1]) for line in lines if line.split()[0] == word)
    except (OSError, ValueError, IndexError, StopIteration):
        return None
