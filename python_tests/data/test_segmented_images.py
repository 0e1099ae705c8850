from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from franca_fast.data.segmented_images import Mask, SegmentedImages, matched_masks
from franca_fast.errors import InputError


class One(SegmentedImages):
    def __init__(self, mask: list[int], class_names: list[str], ignore: int | None = 255) -> None:
        self.names, self.class_names, self.ignore = ["a"], class_names, ignore
        self._mask = np.array([mask], np.int64)

    def load(self, i: int) -> tuple[Image.Image, Mask]:
        return Image.new("RGB", (self._mask.shape[1], 1)), self._mask

    def fingerprint(self) -> str:
        return str(self._mask.tolist())


def test_masks_are_numbered_by_the_names_of_train() -> None:
    train = One([0], ["sky", "sea", "land"])
    test = One([0, 1, 255], ["land", "sky"])
    matched = matched_masks(train, test)
    assert matched.load(0)[1].tolist() == [[2, 0, 255]]
    assert matched.class_names == train.class_names and len(matched) == 1
    assert matched.fingerprint() != test.fingerprint()


def test_any_value_may_be_ignored() -> None:
    train, test = One([0], ["sky", "sea"], 65535), One([0, 65535], ["sea"], 65535)
    assert matched_masks(train, test).load(0)[1].tolist() == [[1, 65535]]


def test_names_are_compared_whichever_way_letters_are_composed() -> None:
    train, test = One([0], ["sky", "cafe\u0301"]), One([0], ["caf\u00e9"])
    assert matched_masks(train, test).load(0)[1].tolist() == [[1]]


def test_equal_classes_change_nothing() -> None:
    train, test = One([0], ["sky", "sea"]), One([1], ["sky", "sea"])
    assert matched_masks(train, test) is test


def test_a_class_that_train_lacks_is_named() -> None:
    with pytest.raises(InputError, match=r"'seas' .did you mean 'sea'.*accepted: .*'sky', 'sea'"):
        matched_masks(One([0], ["sky", "sea"]), One([0], ["seas"]))


def test_one_that_ignores_a_class_and_one_that_does_not() -> None:
    with pytest.raises(InputError, match=r"ignores the mask value 0; accepted: .* 255"):
        matched_masks(One([0], ["sky"]), One([0], ["sky"], ignore=0))
