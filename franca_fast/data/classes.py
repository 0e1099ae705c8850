"""Classes joined by name: over the images of several sources, and between sets of them.

A label is a class's name, or its number where nothing says the name (see `samples.Label`). Names
that differ only in how Unicode composes their letters are the same. A number alone is a position in
a list that is not known: it is joined with equal numbers only, and where other classes have names
it is taken for a class of that name ("7").
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from franca_fast.data.samples import Label
from franca_fast.errors import InputError
from franca_fast.spelling import spell

logger = logging.getLogger(__name__)


def class_key(name: str) -> str:
    """What two names of one class have in common: the letters, whichever way they are composed.

    macOS writes an accent apart from its letter, and other systems do not.

    Example:
        >>> class_key("cafe\u0301") == class_key("caf\u00e9")
        True
    """
    return unicodedata.normalize("NFC", name)


def class_order(names: Iterable[str]) -> list[str]:
    """Names of classes, each once, in their order: by value where all are whole numbers.

    Example:
        >>> class_order(["10", "9", "9"]), class_order(["b", "10", "9"])
        (['9', '10'], ['10', '9', 'b'])
    """
    found = {class_key(name): name for name in sorted(set(names))}.values()
    if all(name.isascii() and name.isdigit() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


class Classes:
    """Numbers classes by their names as they are met.

    Args:
        names: of the classes 0, 1, ..., as far as they are known.

    Attributes:
        names: the same, with those that were met since; empty while labels are numbers.

    Example:
        >>> classes = Classes(["cat"])
        >>> classes.number("cat"), classes.number("dog"), classes.names
        (0, 1, ['cat', 'dog'])
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = list({class_key(name): name for name in names}.values())
        self._numbers = {class_key(name): i for i, name in enumerate(self.names)}
        self._unnamed = False

    def number(self, label: Label | None) -> int | None:
        """The number of a class; a label that is a number stays one while there are no names.

        Raises:
            InputError: a name after numbers without names.
        """
        if label is None:
            return None
        if isinstance(label, int) and not self.names:
            self._unnamed = True
            return label
        if self._unnamed:
            raise InputError(
                f"labels: '{spell(str(label))}' after numbers without names; accepted: names in "
                "all sources, or numbers in all"
            )
        key = class_key(str(label))
        if key not in self._numbers:
            self._numbers[key] = len(self.names)
            self.names.append(str(label))
        return self._numbers[key]


def join_labels(
    labels: Sequence[Label | None], known: Iterable[str] = ()
) -> tuple[NDArray[np.int64], list[str]]:
    """Numbers all labels at once.

    Args:
        labels: of n images.
        known: further names of classes, whose images may be missing.

    Returns:
        int64 [n], -1 where there is no label; and the names of the classes 0, 1, ..., in their
        order, empty when the labels are numbers without names, which then stay as they are.

    Example:
        >>> join_labels(["dog", None, "cat"])
        (array([ 1, -1,  0]), ['cat', 'dog'])
    """
    names = {label for label in labels if isinstance(label, str)} | set(known)
    if not names:
        return np.array([-1 if label is None else label for label in labels], np.int64), []
    unnamed = {str(label) for label in labels if isinstance(label, int)} - names
    if unnamed:
        logger.warning(
            "labels: %d classes have numbers and no names, others have names; each number is "
            "taken for a class of that name, such as '%s'",
            len(unnamed),
            min(unnamed),
        )
    ordered = class_order(names | unnamed)
    numbers = {class_key(name): i for i, name in enumerate(ordered)}
    known_labels = {label: numbers[class_key(str(label))] for label in set(labels) - {None}}
    joined = [-1 if label is None else known_labels[label] for label in labels]
    return np.array(joined, np.int64), ordered
