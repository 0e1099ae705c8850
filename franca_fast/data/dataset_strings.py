"""Strings that name a data set and its options: `NAME:key=value:key=value`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from franca_fast.errors import InputError, did_you_mean

_LOOKS_LIKE_ONE = re.compile(r"[A-Za-z0-9_-]+(:\w+=.*)+")


def split_dataset_string(
    text: str, known: Mapping[str, Sequence[str]]
) -> tuple[str, dict[str, str]] | None:
    """Splits a dataset string; values may contain colons.

    Args:
        text: what a user wrote.
        known: the names of data sets, and the options of each. One that has `root` needs it.

    Returns:
        the name and the options that were given; None where the text names no data set.

    Raises:
        InputError: it looks like a dataset string and names none, or an option is unknown, repeated
            or missing.

    Example:
        >>> split_dataset_string("Photos:root=/a:b:split=TRAIN", {"Photos": ("root", "split")})
        ('Photos', {'root': '/a:b', 'split': 'TRAIN'})
    """
    name, _, rest = text.partition(":")
    if name not in known:
        if _LOOKS_LIKE_ONE.fullmatch(text):
            check_choice("dataset", name, tuple(known))
        return None
    options: dict[str, str] = {}
    for item in re.split(r":(?=\w+=)", rest) if rest else []:
        key, equals, value = item.partition("=")
        if not equals or key not in known[name]:
            accepted = ", ".join(known[name])
            raise InputError(
                f"option of {name}: {key}{did_you_mean(key, known[name])}; accepted: {accepted}"
            )
        if key in options:
            raise InputError(f"source: '{text}'; accepted: one dataset, each option once")
        options[key] = value
    if "root" in known[name] and not options.get("root"):
        raise InputError(f"source: '{text}' needs root=PATH; accepted: {name}:root=PATH")
    return name, options


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuses a value that is none of the choices.

    Raises:
        InputError: with the nearest choice.
    """
    if value not in choices:
        accepted = ", ".join(choices)
        raise InputError(f"{name}: {value}{did_you_mean(value, choices)}; accepted: {accepted}")


def expanded(path: str) -> str:
    """A path with `~` and environment variables replaced."""
    return os.path.expanduser(os.path.expandvars(path))
