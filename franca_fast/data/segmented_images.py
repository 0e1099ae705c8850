"""Images with a class for each pixel: what every data set of them offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from franca_fast.data.classes import class_key
from franca_fast.errors import InputError, did_you_mean
from franca_fast.spelling import spell

VOID = 255  # the mask value of pixels without a class, in most data sets and in ours

Mask = NDArray[np.int64]


class SegmentedImages(ABC):
    """Images with masks, in a fixed order.

    Attributes:
        names: of the images.
        class_names: of the mask values 0, 1, ...; numbers as text where no names are known.
        ignore: the mask value that is never scored; None where every pixel has a class.
    """

    names: list[str]
    class_names: list[str]
    ignore: int | None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_classes(self) -> int:
        """How many mask values are classes; `ignore` may be one of them (ADE20K's 0)."""
        return len(self.class_names)

    @abstractmethod
    def load(self, i: int) -> tuple[Image.Image, Mask]:
        """The image [RGB] and its mask, int64 [height, width], of the same size; thread-safe.

        Raises:
            InputError: a file that cannot be read, sizes that differ, or a mask value that is
                neither a class nor `ignore`.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes when the images or masks do."""


class _Renumbered(SegmentedImages):
    """A data set with its mask values replaced."""

    def __init__(self, images: SegmentedImages, class_names: list[str], table: Mask) -> None:
        self._images, self._table = images, table
        self.names, self.class_names, self.ignore = images.names, class_names, images.ignore

    def load(self, i: int) -> tuple[Image.Image, Mask]:
        image, mask = self._images.load(i)
        return image, self._table[mask]

    def fingerprint(self) -> str:
        """That of the images, and the numbers."""
        return f"{self._images.fingerprint()}\n{self._table.tolist()}"


def matched_masks(train: SegmentedImages, test: SegmentedImages) -> SegmentedImages:
    """The test set with its mask values numbered as those of the training set, by class name.

    Args:
        train: whose numbers are taken.
        test: whose classes are all among those of `train`.

    Raises:
        InputError: names the classes that `train` lacks, or says that the two ignore different
            values.
    """
    numbers = {class_key(name): i for i, name in enumerate(train.class_names)}
    keys = [class_key(name) for name in test.class_names]
    lacking = [key for key in keys if key not in numbers]
    if lacking:
        raise InputError(
            f"test: classes {_listed(lacking)}{did_you_mean(lacking[0], numbers)}, which train "
            f"lacks; accepted: the classes of train, {_listed(list(numbers))}"
        )
    ignored = {_ignored_class(data) for data in (train, test)}
    if len(ignored) > 1:
        raise InputError(
            f"test: ignores the mask value {test.ignore}; accepted: that of train, {train.ignore}"
        )
    if test.class_names == train.class_names:
        return test
    table = np.arange(max(VOID, len(numbers), test.ignore or 0) + 1, dtype=np.int64)
    table[: len(keys)] = [numbers[key] for key in keys]
    return _Renumbered(test, train.class_names, table)


def _ignored_class(data: SegmentedImages) -> int | None:
    """The ignored mask value where it is one of the classes."""
    return None if data.ignore is None or data.ignore >= data.n_classes else data.ignore


def _listed(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(f"'{spell(name)}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
