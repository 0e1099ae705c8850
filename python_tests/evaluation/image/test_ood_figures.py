from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from franca_fast.errors import InputError
from franca_fast.evaluation.image.ood_figures import detection_figures
from python_tests.evaluation.golden import arrays, values

# OpenOOD's name -> ours.
NAMES = {"auroc": "AUROC", "fpr95": "FPR@95", "aupr_out": "AUPR-out", "aupr_in": "AUPR-in"}
SCORES = ("msp", "knn5", "knn50", "mds", "vim8", "vim16")


def check(golden: dict[str, float], known: np.ndarray, unknown: np.ndarray) -> None:
    found = detection_figures(known, unknown)
    for theirs, ours in NAMES.items():
        assert found[ours] / 100 == pytest.approx(golden[theirs], abs=1e-12), ours


@pytest.mark.parametrize("group", ["near", "far"])
@pytest.mark.parametrize("score", SCORES)
def test_equals_openoods_figures(score: str, group: str) -> None:
    known, unknown = (arrays()[f"ood.{score}.{part}"].numpy() for part in ("id", group))
    check(values()["ood"][score][group], known, unknown)


def test_equals_openoods_figures_where_scores_tie() -> None:
    confidence = arrays()["ood.ties.confidence"].numpy()
    check(values()["ood"]["ties"], confidence[:45], confidence[45:])


def plain(known: list[float], unknown: list[float]) -> dict[str, float]:
    """All pairs, and every threshold, with Python's own numbers."""
    pairs = [(k > u) + 0.5 * (k == u) for k in known for u in unknown]

    def curve(own: list[float], others: list[float]) -> list[tuple[int, int]]:
        """How many of either are at least a threshold, from the highest one down."""
        return [
            (sum(s >= at for s in own), sum(s >= at for s in others))
            for at in sorted({*own, *others}, reverse=True)
        ]

    def area(own: list[float], others: list[float]) -> float:
        """Under precision over recall; where recall is 0, precision is 1."""
        recall, precision, total = 0.0, 1.0, 0.0
        for true, false in curve(own, others):
            here = true / len(own), true / (true + false)
            total += (here[0] - recall) * (precision + here[1]) / 2
            recall, precision = here
        return total

    low = [-u for u in unknown], [-k for k in known]
    first = next(false for true, false in curve(*low) if true >= 0.95 * len(unknown))
    return {
        "AUROC": 100 * sum(pairs) / len(pairs),
        "FPR@95": 100 * first / len(known),
        "AUPR-out": 100 * area(*low),
        "AUPR-in": 100 * area(known, unknown),
    }


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_equals_plain_loops(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    known = np.round(generator.normal(1, 1, 41), decimals)
    unknown = np.round(generator.normal(0, 1, 60), decimals)
    expected = plain(known.tolist(), unknown.tolist())
    assert detection_figures(known, unknown) == pytest.approx(expected, abs=1e-9)


def test_order_and_scale_change_nothing() -> None:
    generator = np.random.default_rng(0)
    known, unknown = generator.normal(1, 1, 41), generator.normal(0, 1, 60)
    expected = detection_figures(known, unknown)
    assert detection_figures(known[::-1], np.roll(unknown, 7)) == pytest.approx(expected)
    assert detection_figures(np.exp(known), np.exp(unknown)) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf]])
def test_wrong_scores_are_named(bad: list[float]) -> None:
    with pytest.raises(InputError, match="scores of unknown images"):
        detection_figures(np.ones(2), np.array(bad))
    with pytest.raises(InputError, match="scores of known images"):
        detection_figures(np.array(bad), np.ones(2))


def test_without_scikit_learn_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(InputError, match=r"unknown images needs scikit-learn.*\[eval\]"):
        detection_figures(np.ones(2), np.ones(2))
