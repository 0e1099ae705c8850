from __future__ import annotations

import pytest
import torch

from franca_fast.evaluation.image.accuracy import accuracies, among_best, best_of


def test_ranks_of_the_true_class() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.4, 0.3]] * 4)
    classes = torch.arange(4)
    for best, right in ((1, [0, 1, 0, 0]), (2, [0, 1, 1, 0]), (3, [0, 1, 1, 1]), (4, [1] * 4)):
        assert among_best(scores, classes, best).tolist() == [bool(r) for r in right]


def test_ties_count_as_wrong_whatever_the_order_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(3, (200, 8), generator=generator).float()
    classes = torch.randint(8, (200,), generator=generator)
    found = among_best(scores, classes, 5)
    for row, own, right in zip(scores.tolist(), classes.tolist(), found.tolist(), strict=True):
        assert right == (sum(s >= row[own] for s in row) <= 5)
    order = torch.randperm(8, generator=generator)
    assert torch.equal(among_best(scores[:, order], order.argsort()[classes], 5), found)
    assert 0 < found.sum() < 200


def test_a_class_without_scores_is_wrong() -> None:
    assert among_best(torch.ones(1, 3), torch.tensor([-1]), 3).tolist() == [False]


def test_fewer_classes_than_five() -> None:
    assert [best_of(n) for n in (2, 4, 5, 6, 1000)] == [2, 4, 5, 5, 5]


def test_accuracies_of_tries() -> None:
    correct = torch.tensor([[True, True, False, False], [True, False, False, False]])
    figures, errors, intervals = accuracies({"one": correct[:1], "both": correct})
    assert figures == {"one": 50.0, "both": 37.5}
    assert errors == {"both": pytest.approx(12.5)}
    low, high = intervals["both"]
    assert 0 <= low < 37.5 < high <= 100
