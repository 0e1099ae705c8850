"""Random numbers as a function of what they are for.

A draw depends on a seed, on what it is for and on counters (which sample, which crop), never on
what was drawn before. So the same sample gets the same crops and masks whichever worker makes it,
and nothing but counters has to be saved to continue exactly. The numbers do not depend on the
version of any library.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_BITS = 64


class Purpose(IntEnum):
    """What numbers are drawn for; draws for different purposes are independent."""

    SHARD_ORDER = 1
    SAMPLE_ORDER = 2
    SPARES = 3
    GEOMETRY = 4
    PHOTOMETRY = 5
    MASK_COUNTS = 6
    MASK_ORDER = 7
    MASK_SHAPES = 8
    PACKING = 9
    PIPELINE = 10
    SCENES = 11
    HEADS = 12
    MEMORY_IMAGES = 13
    MEMORY_PATCHES = 14


def uniforms(
    seed: int, purpose: Purpose, counters: NDArray[np.integer], width: int
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one row per counter.

    Args:
        seed: any integer.
        purpose: what the numbers are for.
        counters: integers [n], or [n, k] where a row is one counter of k parts.
        width: numbers per counter.

    Returns:
        float64 [n, width].

    Example:
        >>> rows = uniforms(0, Purpose.GEOMETRY, np.arange(10), 4)
        >>> bool((rows[3] == uniforms(0, Purpose.GEOMETRY, np.array([3]), 4)[0]).all())
        True
    """
    return (_hashes(seed, purpose, counters, width) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, purpose: Purpose, counters: tuple[int, ...], n: int) -> NDArray[np.intp]:
    """A random order of 0..n-1, a function of the arguments alone.

    Example:
        >>> sorted(permutation(0, Purpose.SAMPLE_ORDER, (1, 2), 4).tolist())
        [0, 1, 2, 3]
    """
    keys = _hashes(seed, purpose, np.array([counters]), n)[0]
    return np.argsort(keys, kind="stable")


def derived_seed(seed: int, purpose: Purpose, *parts: int) -> int:
    """Another seed, a function of the arguments alone.

    Example:
        >>> derived_seed(0, Purpose.PIPELINE, 1) == derived_seed(0, Purpose.PIPELINE, 2)
        False
    """
    return int(_hashes(seed, purpose, np.array([parts]), 1)[0, 0])


def _hashes(
    seed: int, purpose: Purpose, counters: NDArray[np.integer], width: int
) -> NDArray[np.uint64]:
    """uint64 [n, width], each a hash of (seed, purpose, the counter's parts, its column)."""
    parts = np.atleast_2d(counters.T).astype(np.uint64)  # [k, n]
    state = np.full(parts.shape[1], (seed * 0x100 + purpose) % 2**_BITS, np.uint64)
    state = _mix(state)
    for part in parts:
        state = _mix(state ^ (part * np.uint64(_GOLDEN)))
    columns = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return _mix(state[:, None] + columns)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64 (Steele, Lea and Flood 2014); wraps around by design."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
