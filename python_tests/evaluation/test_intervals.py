from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.evaluation import intervals
from franca_fast.evaluation.intervals import bootstrap_interval, mean_and_error


def plain_bootstrap(values: list[float], n: int) -> tuple[float, float]:
    """Images drawn one by one."""
    generator = np.random.default_rng(7)
    t = len(values)
    means = [sum(values[i] for i in generator.integers(t, size=t)) / t for _ in range(n)]
    return tuple(np.quantile(means, (0.025, 0.975)))


@pytest.mark.parametrize(
    "values", [[1.0] * 30 + [0.0] * 20, [0.2 * (i % 6) for i in range(60)], [0.0, 1.0, 5.0]]
)
def test_agrees_with_drawing_images_one_by_one(values: list[float]) -> None:
    ours = bootstrap_interval(values, n=20_000)
    # Both ends are quantiles of 20,000 draws: their error is far below a tenth of the spread.
    spread = np.std(values) / math.sqrt(len(values))
    assert ours == pytest.approx(plain_bootstrap(values, 20_000), abs=0.1 * spread)


def test_equals_the_binomial_quantiles() -> None:
    from scipy.stats import binom

    low, high = bootstrap_interval([True] * 70 + [False] * 30, n=100_000)
    expected = binom.ppf([0.025, 0.975], 100, 0.7) / 100
    assert (low, high) == pytest.approx(tuple(expected), abs=1e-9)


def test_order_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = bootstrap_interval(values)
    assert bootstrap_interval(values.flip(0)) == whole
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", 50 * 7)
    assert bootstrap_interval(values) == whole


def test_the_seed_changes_the_draws_and_nothing_else_does() -> None:
    values = [1.0] * 13 + [0.0] * 9
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values, seed=1, n=50) != bootstrap_interval(values, seed=2, n=50)


def test_equal_values_leave_no_doubt() -> None:
    assert bootstrap_interval([1.0] * 9) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (([],), "correct"),
        (([[1.0]],), "correct"),
        (([1.0, math.nan],), "correct: values that are not all finite"),
        (([1.0], 0, 0), "n: 0"),
    ],
)
def test_wrong_input_is_named(arguments: tuple, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        bootstrap_interval(*arguments)


def test_standard_error_is_that_of_the_mean() -> None:
    values = [3.0, 4.0, 8.0]
    mean = 5.0
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    assert mean_and_error(values) == pytest.approx((mean, deviation / math.sqrt(3)))
    assert mean_and_error([4.0]) == (4.0, None)
