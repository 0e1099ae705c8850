"""kNN at ImageNet's size from a part: the arithmetic."""

from __future__ import annotations

import pytest

from bench import knn


def test_the_rest_is_a_straight_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "seconds_of", lambda train, labels, queries: 5 + 0.5 * len(queries))
    found = knn.measured(100, 1000, 8, 16)
    assert found["measured"] == {"2": 6.0, "16": 13.0}
    assert found["seconds_per_test_image"] == pytest.approx(0.5)
    assert found["estimated_seconds"] == pytest.approx(5 + 0.5 * 1000)


def test_it_runs() -> None:
    found = knn.measured(300, 1000, 8, 16)
    assert found["train_images"] == 300 and found["peak_gib"] > 0
