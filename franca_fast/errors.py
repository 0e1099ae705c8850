"""Errors that a user can cause and mend."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn


class FrancaError(Exception):
    """Anything that the command line reports in one line, with exit code 2."""


class InputError(FrancaError, ValueError):
    """A wrong argument, configuration or file.

    The message names the argument, what was given and what is accepted.
    """


class OutputError(InputError, OSError):
    """An output that cannot be written, found before the work or, when nothing told, after it.

    Attributes:
        kept: where what was computed lies, or the part of it that could be written; None before
            the work, and where it is lost. The message says so, too.
        errno: the number of the system's error, where it was one.
    """

    def __init__(
        self, message: str, cause: Exception | None = None, kept: Path | None = None
    ) -> None:
        super().__init__(message)
        self.kept = kept
        self.errno = getattr(cause, "errno", None)


def error_line(error: OSError) -> str:
    """What went wrong with which file, as users read it.

    Example:
        >>> error_line(OSError(28, "No space left on device", "a.npz"))
        'No space left on device: a.npz'
    """
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


class RenamedError(FrancaError, ImportError):
    """A name that an earlier version had."""


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that tells the new names of old ones.

    Args:
        module: the module's `__name__`.
        names: old name -> what stands in its place, in words that end the message.

    Example:
        >>> renamed("franca_fast.ops", {"old": "franca_fast.ops.new"})("old")
        Traceback (most recent call last):
        ...
        franca_fast.errors.RenamedError: franca_fast.ops.old: since 0.2 it is franca_fast.ops.new
    """

    def getattr_(name: str) -> NoReturn:
        # Not an AttributeError, whose words `from module import name` would replace by its own.
        if name in names:
            raise RenamedError(f"{module}.{name}: since 0.2 it is {names[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return getattr_
