"""Levels of more than 8 bits, and what makes them 0 to 255."""

from __future__ import annotations

import math

from franca_fast.errors import InputError

ACCEPTED = "full, minmax, or two numbers LOW:HIGH with LOW below HIGH, such as -1024:3071"


def level_range(levels: str) -> tuple[float, float] | None:
    """The two numbers of "LOW:HIGH"; None for "full" and "minmax".

    Raises:
        InputError: neither of these.

    Example:
        >>> level_range("-1024:3071"), level_range("minmax")
        ((-1024.0, 3071.0), None)
    """
    if levels in ("full", "minmax"):
        return None
    try:
        low, high = map(float, levels.split(":"))
    except (ValueError, AttributeError):
        low = high = math.nan
    if not (math.isfinite(high - low) and low < high):
        raise InputError(f"levels: {levels!r}; accepted: {ACCEPTED}")
    return low, high
