"""What stands beside the fields of the schema: limits and choices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from franca_fast.config.setting import Setting, setting, settings
from franca_fast.errors import InputError


@pytest.mark.parametrize(
    ("limits", "accepted", "refused"),
    [
        ({"above": 0}, [1e-9, 5], [0, -1, float("nan")]),
        ({"at_least": 0}, [0, 5], [-1e-9, float("nan")]),
        ({"at_least": 0, "at_most": 1}, [0, 1], [-0.1, 1.1]),
        ({"at_least": 0, "below": 1}, [0, 0.999], [-0.1, 1]),
        ({"choices": ("sum", "mean")}, ["sum"], ["SUM", ""]),
    ],
)
def test_a_limit_holds(limits: dict[str, Any], accepted: list[Any], refused: list[Any]) -> None:
    accepts = Setting(**limits)
    for value in accepted:
        accepts.check("train.key", value)
    for value in refused:
        with pytest.raises(InputError, match=r"^train\.key: .*; accepted: "):
            accepts.check("train.key", value)


def test_null_is_accepted_where_it_is_the_default() -> None:
    @dataclass
    class Section:
        steps: int | None = setting(None, above=0)

    ((key, value, accepts),) = settings(Section())
    accepts.check(key, value)
    with pytest.raises(InputError, match="steps: 0; accepted: null, or a number above 0"):
        accepts.check(key, 0)


def test_an_unknown_limit_is_an_error_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="atleast"):
        setting(1, atleast=0)


def test_keys_are_named_by_their_sections() -> None:
    @dataclass
    class Inner:
        share: float = 0.5

    @dataclass
    class Outer:
        inner: Inner = field(default_factory=Inner)
        name: str = "x"

    assert [key for key, *_ in settings(Outer())] == ["inner.share", "name"]
