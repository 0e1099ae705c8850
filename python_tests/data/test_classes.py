from __future__ import annotations

import logging

import numpy as np
import pytest

from franca_fast.data.classes import Classes, class_order, join_labels
from franca_fast.errors import InputError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([str(i) for i in reversed(range(12))], [str(i) for i in range(12)]),
        (["10", "9", "09"], ["09", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["\u0662", "1"], ["1", "\u0662"]),  # digits, but not what int() should take here
        ([], []),
    ],
)
def test_the_order_of_classes(names: list[str], expected: list[str]) -> None:
    assert class_order(names) == expected


@pytest.mark.parametrize("seed", range(20))
def test_the_same_names_have_the_same_number_in_any_order(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = [None if i == 0 else f"class {i}" for i in draw.integers(0, 8, 40)]
    numbers, names = join_labels(labels, ["class 3", "never met"])
    assert [None if n < 0 else names[n] for n in numbers] == labels
    order = draw.permutation(len(labels))
    again, same = join_labels([labels[i] for i in order], ["class 3", "never met"])
    assert same == names
    np.testing.assert_array_equal(again, numbers[order])


def test_numbers_without_names_stay_numbers() -> None:
    numbers, names = join_labels([7, None, 3])
    assert numbers.tolist() == [7, -1, 3] and names == []


def test_numbers_beside_names_become_names_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        numbers, names = join_labels(["cat", 3, "3", 10])
    assert [names[number] for number in numbers] == ["cat", "3", "3", "10"]
    assert "1 classes have numbers and no names" in caplog.text and "'10'" in caplog.text


def test_classes_are_numbered_as_they_are_met() -> None:
    classes = Classes(["b", "a"])
    assert [classes.number(label) for label in ("a", None, "c", 7, "7")] == [1, None, 2, 3, 3]
    assert classes.names == ["b", "a", "c", "7"]


def test_names_after_numbers_are_refused() -> None:
    classes = Classes()
    assert classes.number(7) == 7
    with pytest.raises(InputError, match="labels: 'cat' after numbers without names"):
        classes.number("cat")


COMPOSED = [("cafe\u0301", "caf\u00e9"), ("U\u0308bung", "\u00dcbung"), ("\u1100\u1161", "\uac00")]


@pytest.mark.parametrize(("apart", "whole"), COMPOSED)
def test_letters_that_are_composed_otherwise_are_the_same_class(apart: str, whole: str) -> None:
    assert len(class_order([apart, whole])) == 1
    numbers, names = join_labels([apart, "x", whole], [whole])
    assert numbers[0] == numbers[2] != numbers[1] and len(names) == 2
    classes = Classes([whole])
    assert classes.number(apart) == classes.number(whole) == 0
