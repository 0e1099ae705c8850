"""Memory that a training step frees and the next one takes again."""

from __future__ import annotations

import ctypes
import os

# Of malloc.h and mallopt(3), in bytes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM = 2**31 - 1  # the most that fits
_MMAP = (1 << 30, 32 << 20)  # glibc before 2.35 takes no more than the second
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Has this process keep the memory that it frees, for what it allocates next.

    Every step on a CPU allocates and frees the same tensors. By default the C library gives large
    ones back to the operating system, which clears each page again for the next step.

    Returns:
        False where nothing was changed: the C library is not glibc, or the environment says how
        its allocator is to be set.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Each call that succeeds ends the thresholds' growing by themselves, so this one comes first.
    if not any(mallopt(_M_MMAP_THRESHOLD, ctypes.c_int(size)) == 1 for size in _MMAP):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(_TRIM)) == 1)
