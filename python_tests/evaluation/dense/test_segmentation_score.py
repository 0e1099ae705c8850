from __future__ import annotations

import math

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.segmentation_score import Confusion
from python_tests.evaluation.golden import values


def filled(ignore: int | None = 255) -> tuple[Confusion, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (3, 7, 5), generator=generator)
    predicted = torch.randint(0, 5, (3, 7, 5), generator=generator)
    label[0, :2] = 255
    confusion = Confusion(6, ignore)
    for one, other in zip(label, predicted, strict=True):
        confusion.add(one, other)
    return confusion, label, predicted


def test_equals_counting_pixel_by_pixel() -> None:
    confusion, label, predicted = filled()
    pairs = [
        (a, b)
        for a, b in zip(label.flatten().tolist(), predicted.flatten().tolist(), strict=True)
        if a != 255
    ]
    iou = {}
    for c in range(6):
        both = sum(a == b == c for a, b in pairs)
        either = sum(c in (a, b) for a, b in pairs)
        iou[c] = both / either if either else math.nan
    assert confusion.iou().tolist() == pytest.approx([iou[c] for c in range(6)], nan_ok=True)
    # Class 4 is predicted and never a label; 5 is neither.
    assert confusion.miou() == pytest.approx(25 * sum(iou[c] for c in range(4)))
    assert confusion.miou("zero") == pytest.approx(100 / 6 * sum(iou[c] for c in range(4)))


@pytest.mark.parametrize("case", ["unbounded.k5", "unbounded.k30", "bounded.k5", "bounded.k30"])
def test_the_published_figure_from_the_published_counts(case: str) -> None:
    known = values()["hbird"][case]
    confusion = Confusion(4, 255)
    confusion.matrix += torch.tensor(known["confusion"])
    assert confusion.miou("zero") == pytest.approx(100 * known["miou_identity"], abs=1e-10)


def test_a_permutation_of_classes_changes_nothing() -> None:
    confusion, label, predicted = filled()
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    permuted = Confusion(6, 255)
    permuted.add(torch.where(label == 255, 255, order[label.clamp(max=5)]), order[predicted])
    assert permuted.miou() == pytest.approx(confusion.miou())


def test_ignored_labels_never_count() -> None:
    confusion, label, _ = filled()
    matrix = confusion.matrix.clone()
    confusion.add(torch.full_like(label, 255), torch.full_like(label, 77))
    assert torch.equal(confusion.matrix, matrix)


def test_a_class_may_be_the_ignored_one() -> None:
    confusion = Confusion(3, ignore=0)
    confusion.add(torch.tensor([0, 1, 2, 2]), torch.tensor([2, 1, 2, 0]))
    assert confusion.iou().tolist() == [0.0, 1.0, 0.5] and confusion.miou() == 75.0


def test_what_is_refused() -> None:
    confusion = Confusion(3)
    with pytest.raises(InputError, match="label: 255; accepted: 0 to 2"):
        confusion.add(torch.tensor([255]), torch.tensor([0]))
    with pytest.raises(InputError, match="predicted: 3; accepted: 0 to 2"):
        confusion.add(torch.tensor([0]), torch.tensor([3]))
    with pytest.raises(InputError, match=r"predicted: \(2,\); accepted: the labels' shape, \(1,\)"):
        confusion.add(torch.tensor([0]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="n_classes: 0"):
        Confusion(0)
    with pytest.raises(InputError, match="absent: 'x'; accepted: left out, zero"):
        confusion.miou("x")


def test_without_pixels_there_is_no_figure() -> None:
    assert math.isnan(Confusion(2).miou())


def test_masks_without_a_class_have_no_figure() -> None:
    confusion = Confusion(2, ignore=255)
    confusion.add(torch.tensor([255]), torch.tensor([1]))
    with pytest.raises(InputError, match="test: no pixel with a class"):
        confusion.check_any()
    confusion.add(torch.tensor([0]), torch.tensor([1]))
    confusion.check_any()
