from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from franca_fast.evaluation.image.ranking import (
    average_precision,
    precision_at,
    recall_at,
    trapezoidal_average_precision,
)
from python_tests.evaluation.golden import arrays, values

KS = (1, 5, 10)
# Which images count as relevant, and which are taken out of the list first.
SETTINGS = {"medium": (("easy", "hard"), ("junk",)), "hard": (("hard",), ("junk", "easy"))}


def golden_lists(setting: str) -> list[torch.Tensor]:
    """For each query, whether the ranked images that count are relevant: bool [1, n]."""
    ranks = arrays()["retrieval.ranks"]
    lists = []
    for query, truth in enumerate(values()["retrieval"]["ground_truth"]):
        relevant, out = ({i for kind in kinds for i in truth[kind]} for kinds in SETTINGS[setting])
        counted = [i for i in ranks[:, query].tolist() if i not in out]
        lists.append(torch.tensor([[i in relevant for i in counted]]))
    return lists


def as_float(value: Any) -> float:
    return math.nan if value is None else value


@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_dinos_figures(setting: str) -> None:
    golden = values()["retrieval"][setting]
    lists = golden_lists(setting)
    ours = [trapezoidal_average_precision(one).item() for one in lists]
    expected = [as_float(value) for value in golden["ap"]]
    assert ours == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert np.nanmean(ours) == pytest.approx(golden["map"], abs=1e-12)
    for column, k in enumerate(KS):
        at_k = [precision_at(one, k).item() for one in lists]
        rows = [as_float(row[column]) for row in golden["precision_at"]]
        assert at_k == pytest.approx(rows, abs=1e-12, nan_ok=True)
        assert np.nanmean(at_k) == pytest.approx(golden["mean_precision_at"][str(k)])


def random_lists() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    lists = torch.rand(40, 23, generator=generator) < torch.rand(40, 1, generator=generator)
    lists[0], lists[1] = True, False
    lists[1, -1] = True
    return lists[lists.any(1)]


def test_average_precision_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    scores = -np.arange(23.0)
    for one in random_lists():
        expected = average_precision_score(one.numpy(), scores)
        assert average_precision(one[None]).item() == pytest.approx(expected, abs=1e-12)


def test_equal_plain_loops() -> None:
    lists = random_lists()
    ours = average_precision(lists).tolist()
    trapezoids = trapezoidal_average_precision(lists).tolist()
    for row, one in enumerate(lists.tolist()):
        ranks = [place + 1 for place, relevant in enumerate(one) if relevant]
        plain = sum((j + 1) / rank for j, rank in enumerate(ranks)) / len(ranks)
        area = 0.0
        for j, rank in enumerate(ranks):
            before = 1.0 if rank == 1 else j / (rank - 1)
            area += (before + (j + 1) / rank) / 2 / len(ranks)
        assert ours[row] == pytest.approx(plain, abs=1e-12)
        assert trapezoids[row] == pytest.approx(area, abs=1e-12)
        for k in (*KS, 100):
            found = recall_at(lists[row : row + 1], k).item()
            assert found == any(rank <= k for rank in ranks)
            length = min(k, ranks[-1])
            share = sum(rank <= length for rank in ranks) / length
            assert precision_at(lists[row : row + 1], k).item() == pytest.approx(share)


def test_nothing_relevant_is_no_number() -> None:
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    for figure in (average_precision, trapezoidal_average_precision):
        assert math.isnan(figure(nothing).item())
    assert math.isnan(precision_at(nothing, 2).item())
    assert recall_at(nothing, 4).tolist() == [False]
