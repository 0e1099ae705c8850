"""Errors that a user can cause and mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FrancaError(Exception):
    """Anything that the command line reports in one line, with exit code 2."""


class InputError(FrancaError, ValueError):
    """A wrong argument, configuration or file.

    The message names the argument, what was given and what is accepted.
    """


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""
