from __future__ import annotations

import pytest

from franca_fast.data.levels import level_range
from franca_fast.errors import InputError


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ("full", None),
        ("minmax", None),
        ("0:4095", (0, 4095)),
        ("-1024:3071", (-1024, 3071)),
        ("-0.5:1e3", (-0.5, 1000)),
    ],
)
def test_which_levels_there_are(levels: str, expected: tuple[float, float] | None) -> None:
    assert level_range(levels) == expected


@pytest.mark.parametrize("levels", ["", "max", "1", "5:3", "2:2", "0:nan", "0:inf", "1:2:3", 7])
def test_other_levels_are_refused(levels: str) -> None:
    with pytest.raises(InputError, match=r"levels: .*; accepted: full, minmax, or two numbers"):
        level_range(levels)
