"""What stands beside a field of the schema: limits, choices, and whether a resume may change it."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from franca_fast.errors import InputError, did_you_mean

_KEY = "setting"
_LIMITS = {
    "above": (operator.gt, "above {:g}"),
    "at_least": (operator.ge, "{:g} or more"),
    "at_most": (operator.le, "{:g} or less"),
    "below": (operator.lt, "below {:g}"),
}


@dataclass(frozen=True)
class Setting:
    """What a key accepts; see `setting`."""

    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Collection[str] = ()
    resumable: bool = False
    nullable: bool = False

    def check(self, key: str, value: Any) -> None:
        """Raises InputError when the key does not accept the value."""
        if self.nullable and value is None:
            return
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise InputError(f"{key}: {value!r}; accepted: finite numbers")
        if self.choices and value not in self.choices:
            nearest = did_you_mean(value, self.choices)
            raise InputError(f"{key}: '{value}'{nearest}; accepted: {', '.join(self.choices)}")
        limits = [
            (holds(value, limit), text.format(limit))
            for name, (holds, text) in _LIMITS.items()
            if (limit := getattr(self, name)) is not None
        ]
        if not all(kept for kept, _ in limits):
            texts = ["null, or a number"] if self.nullable else ["a number"]
            accepted = " ".join([*texts, ", ".join(text for _, text in limits)])
            raise InputError(f"{key}: {value!r}; accepted: {accepted}")


def setting(default: Any, **accepts: Any) -> Any:
    """A field of a dataclass of the schema.

    Args:
        default: its value when it is left out; with None, null is accepted.
        **accepts: `above`, `at_least`, `at_most`, `below`: limits of a number. `choices`: the
            accepted strings. `resumable`: the value may change when a run is resumed, as it alters
            where the run computes and what it reports and keeps, but not what it computes.

    Example:
        >>> @dataclass
        ... class Section:
        ...     share: float = setting(0.5, at_least=0, at_most=1)
        >>> [(key, value, s.at_most) for key, value, s in settings(Section(), "data.")]
        [('data.share', 0.5, 1)]
    """
    accepted = Setting(nullable=default is None, **accepts)
    return field(default=default, metadata={_KEY: accepted})


def settings(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Setting]]:
    """Every key below a section, with its value and what it accepts, in the order of the schema."""
    for entry in fields(section):
        key, value = f"{prefix}{entry.name}", getattr(section, entry.name)
        if is_dataclass(value):
            yield from settings(value, f"{key}.")
        else:
            yield key, value, entry.metadata.get(_KEY, Setting())
