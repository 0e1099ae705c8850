from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor

from franca_fast.evaluation.dense.clusters.matching import (
    confusion_of,
    hungarian,
    many_to_one_iou,
    many_to_one_precision,
    precision_then_hungarian,
)
from python_tests.evaluation.golden import arrays, values

MATCHINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "hungarian": hungarian,
    "many_to_one_iou": many_to_one_iou,
    "many_to_one_precision": many_to_one_precision,
}
ALL = [*MATCHINGS.values(), precision_then_hungarian]


def golden_counts(k: int, absent: int | None = None) -> Tensor:
    """Counts of the golden assignments, pixel by pixel."""
    labels = arrays()["overcluster.masks_100"].flatten().tolist()
    clusters = arrays()[f"overcluster.k{k}.assignments"].flatten().tolist()
    counts = torch.zeros(k, 5, dtype=torch.int64)
    for cluster, label in zip(clusters, labels, strict=True):
        if label != 255:
            counts[cluster, 0 if label == absent else label] += 1
    return counts


def random_counts(k: int, c: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 50, (k, c), generator=generator)
    return counts * (torch.rand(k, c, generator=generator) < 0.6)


def plain_iou(counts: Tensor, cluster: int, label: int) -> float:
    both = int(counts[cluster, label])
    either = int(counts[cluster].sum()) + int(counts[:, label].sum()) - both
    return both / either if either else 0.0


@pytest.mark.parametrize("k", [5, 12, 20])
@pytest.mark.parametrize("name", MATCHINGS)
def test_golden(name: str, k: int) -> None:
    expected = values()["overcluster"][f"k{k}"][name]
    counts = golden_counts(k)
    classes = MATCHINGS[name](counts)
    assert classes.tolist() == expected["mapping"]
    confusion = confusion_of(counts, classes)
    assert confusion.matrix.diagonal().tolist() == expected["tp"]
    assert (confusion.matrix.sum(0) - confusion.matrix.diagonal()).tolist() == expected["fp"]
    assert (confusion.matrix.sum(1) - confusion.matrix.diagonal()).tolist() == expected["fn"]
    assert confusion.iou().tolist() == pytest.approx(expected["iou"], abs=1e-12)
    assert confusion.miou() == pytest.approx(100 * expected["miou"], abs=1e-10)


def test_golden_with_a_class_that_no_mask_shows() -> None:
    expected = values()["overcluster"]["absent_class"]
    counts = golden_counts(12, absent=4)
    for name, match in MATCHINGS.items():
        confusion = confusion_of(counts, match(counts))
        assert confusion.miou("zero") == pytest.approx(100 * expected[name], abs=1e-10)
        assert confusion.miou() == pytest.approx(125 * expected[name], abs=1e-10)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("k", "c"), [(3, 4), (4, 4), (6, 4)])
def test_hungarian_is_the_best_of_all_assignments(k: int, c: int, seed: int) -> None:
    counts = random_counts(k, c, seed) * 100 + torch.arange(k * c).view(k, c) + 1  # no ties
    few, many = min(k, c), max(k, c)
    best, expected = -1.0, [0] * k
    for chosen in permutations(range(many), few):
        pairs = list(zip(chosen, range(few)) if k > c else zip(range(few), chosen))  # noqa: B905
        total = sum(plain_iou(counts, cluster, label) for cluster, label in pairs)
        if total > best:
            best, expected = total, [0] * k
            for cluster, label in pairs:
                expected[cluster] = label
    assert hungarian(counts).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_many_to_one_by_plain_loops(seed: int) -> None:
    counts = random_counts(9, 4, seed)
    counts[3] = 0
    counts[5] = torch.tensor([0, 7, 7, 0])
    for match, score in (
        (many_to_one_iou, plain_iou),
        (many_to_one_precision, lambda n, k, c: int(n[k, c]) / max(1, int(n[k].sum()))),
    ):
        expected = []
        for cluster in range(9):
            scores = [score(counts, cluster, label) for label in range(4)]
            expected.append(scores.index(max(scores)))
        assert match(counts).tolist() == expected
    assert many_to_one_precision(counts)[3] == 0 and many_to_one_precision(counts)[5] == 1


@pytest.mark.parametrize("seed", range(8))
def test_precision_then_hungarian_by_plain_loops(seed: int) -> None:
    counts = random_counts(9, 4, seed)
    groups = many_to_one_precision(counts).tolist()
    together = torch.zeros(4, 4, dtype=torch.int64)
    for group, row in zip(groups, counts, strict=True):
        together[group] += row
    best, classes = -1.0, ()
    for order in permutations(range(4)):
        total = sum(plain_iou(together, group, label) for group, label in enumerate(order))
        if total > best + 1e-12:
            best, classes = total, order
    found = precision_then_hungarian(counts)
    confusion = confusion_of(counts, found)
    assert confusion.iou().nan_to_num(0).sum().item() == pytest.approx(best)
    occupied = set(groups)
    assert {group: classes[group] for group in occupied} == {
        group: label for group, label in zip(groups, found.tolist(), strict=True)
    }
    by_precision = confusion_of(counts, many_to_one_precision(counts))
    assert confusion.miou() >= by_precision.miou() - 1e-9


def test_a_group_may_stand_for_another_class_than_that_of_most_of_its_pixels() -> None:
    # Most of cluster 1 is class 1, most of which is elsewhere; a third of it is class 2's, a small
    # one, so that the IoU with class 2 is larger: 1/7 against 2/18.
    counts = torch.tensor([[8, 2, 4], [0, 2, 1], [9, 7, 0], [6, 6, 0]])
    assert many_to_one_precision(counts).tolist() == [0, 1, 0, 0]
    assert precision_then_hungarian(counts).tolist() == [0, 2, 0, 0]


@pytest.mark.parametrize("match", ALL)
def test_names_of_clusters_and_classes_change_nothing(match: Callable[[Tensor], Tensor]) -> None:
    counts = random_counts(9, 4, 3) * 100 + torch.arange(36).view(9, 4)  # no ties, no zeros
    clusters, classes = torch.tensor([4, 0, 8, 2, 7, 1, 3, 6, 5]), torch.tensor([0, 3, 1, 2])
    renamed = counts[clusters][:, classes]
    assert classes[match(renamed)].tolist() == match(counts)[clusters].tolist()


def test_no_pixels_at_all() -> None:
    counts = torch.zeros(3, 2, dtype=torch.int64)
    for match in ALL:
        confusion = confusion_of(counts, match(counts))
        assert confusion.matrix.sum() == 0 and confusion.miou("zero") == 0
