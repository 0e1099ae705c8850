from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from franca_fast.data.segmented_images import SegmentedImages
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.in_context import InContextSettings, in_context
from franca_fast.evaluation.dense.memory import progress, stream, voting
from franca_fast.evaluation.dense.memory.search import Neighbours, bytes_per_query
from franca_fast.evaluation.dense.memory.voting import query_groups
from franca_fast.evaluation.protocol import Reading
from franca_fast.evaluation.result import Result
from python_tests.evaluation.dense.in_context_sets import KnownImages, MeanColours

SETTINGS = InContextSettings(img_size=28, k=4, seeds=(0, 1), memory_size=3 * 2 * 7)
DIMS = (3, 12)


class Scenes(KnownImages):
    """Images with a colour for each class, and noise."""

    def load(self, i: int) -> tuple[Any, np.ndarray]:
        from PIL import Image

        _, mask = super().load(i)
        rng = np.random.default_rng(self._first + self._order[i])
        colours = np.array([[60, 60, 60], [90, 60, 50], [50, 80, 90]])
        pixels = colours[np.where(mask < 3, mask, 0)] + rng.normal(0, 25, (*mask.shape, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


def scenes(n: int, first: int, order: list[int] | None = None) -> Scenes:
    rng = np.random.default_rng(first)
    masks = []
    for _ in range(n):
        mask = np.zeros((30, 41), np.int64)
        y, x = rng.integers(0, 15, 2)
        mask[y : y + 15, x : x + 20] = rng.integers(1, 3)
        mask[:2] = 255
        masks.append(mask)
    return Scenes(masks, first, 3, order=order)


def evaluated(
    train: SegmentedImages | None = None, test: SegmentedImages | None = None, **reading: Any
) -> Result:
    return in_context(
        MeanColours(7),
        train or scenes(3, 100),
        test or scenes(5, 200),
        SETTINGS,
        dims=DIMS,
        reading=Reading(**{"batch_size": 2, "num_workers": 0, **reading}),
    )


@pytest.fixture(scope="module")
def whole() -> Result:
    return evaluated()


def same(a: Result, b: Result) -> bool:
    return (a.figures, a.errors, a.details["iou"]) == (b.figures, b.errors, b.details["iou"])


def test_the_figures_are_worth_comparing(whole: Result) -> None:
    assert whole.figures[3] != whole.figures[12]
    assert all(20 < figures["mIoU"] < 95 for figures in whole.figures.values())
    assert whole.errors[12]["mIoU"] > 0


@pytest.mark.parametrize("reading", [{"batch_size": 1}, {"batch_size": 64}, {"num_workers": 3}])
def test_batches_and_workers_change_nothing(reading: dict[str, int], whole: Result) -> None:
    assert same(evaluated(**reading), whole)


def test_the_order_of_images_changes_nothing(whole: Result) -> None:
    assert same(evaluated(scenes(3, 100, [2, 0, 1]), scenes(5, 200, [4, 1, 0, 3, 2])), whole)


@pytest.mark.parametrize("fit", [1, 2, 4])
def test_groups_of_queries_change_nothing(
    fit: int, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = lambda n, *_: [range(i, min(i + fit, n)) for i in range(0, n, fit)]  # noqa: E731
    monkeypatch.setattr(voting, "query_groups", groups)
    grouped = evaluated()
    assert grouped.details["groups_of_queries"] == -(-5 // fit) > 1
    assert same(grouped, whole)


def test_the_memory_is_what_was_asked_for() -> None:
    fixed = voting._TILES
    per_image = 16 * sum(bytes_per_query(m, 4) for m in DIMS)
    assert query_groups(5, per_image, fixed, (fixed + 2.5 * per_image) / 1e9) == [
        range(0, 2), range(2, 4), range(4, 5),
    ]  # fmt: skip
    assert query_groups(4, per_image, fixed, (fixed + 3.5 * per_image) / 1e9) == [
        range(0, 2), range(2, 4),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"memory_gb: 0.5; accepted: 0.50 or more, or a smaller"):
        query_groups(4, per_image, fixed, 0.5)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    ("grouped", "after"), [*((False, n) for n in (1, 4, 5, 8)), *((True, n) for n in (3, 9, 14))]
)
def test_an_interrupted_search_goes_on_with_the_same_result(
    grouped: bool, after: int, whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_SAVES", 0)
    if grouped:
        monkeypatch.setattr(voting, "query_groups", lambda *_: [range(0, 3), range(3, 5)])
    add, calls = Neighbours.add, 0

    def counted(self: Neighbours, memory: torch.Tensor, numbers: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Interrupted
        add(self, memory, numbers)

    monkeypatch.setattr(Neighbours, "add", counted)
    with pytest.raises(Interrupted):
        evaluated(features_cache=tmp_path)
    searched, calls, after = (after - 1) // 2, 0, 0  # blocks, each at two widths
    # With other batches: what was found does not depend on them.
    assert same(evaluated(features_cache=tmp_path, batch_size=1), whole)
    blocks = (2 if grouped else 1) * 2 * 2  # groups x seeds x blocks, of 2 images and of 1
    images = sum(2 - i % 2 for i in range(searched, blocks))
    assert calls == 2 * images  # what was saved is not searched again
    assert [file for file in tmp_path.glob("progress/*") if file.is_file()] == []


def test_the_progress_of_other_settings_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Result
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_SAVES", 0)
    with monkeypatch.context() as patch:
        patch.setattr(voting, "class_map", _interrupt)
        other = scenes(3, 101)
        with pytest.raises(Interrupted):
            evaluated(train=other, features_cache=tmp_path)
    assert len(list(tmp_path.glob("progress/*.safetensors"))) == 1
    assert same(evaluated(features_cache=tmp_path), whole)
    assert len(list(tmp_path.glob("progress/*.safetensors"))) == 1  # the other's


def _interrupt(*_: object) -> None:
    raise Interrupted


CHILD = """
import sys, time
from python_tests.evaluation.dense.memory import test_voting as tests
tests.progress.SECONDS_BETWEEN_SAVES = 0
add = tests.Neighbours.add
def slow(self, memory, numbers):
    time.sleep(0.2)
    add(self, memory, numbers)
tests.Neighbours.add = slow
tests.evaluated(features_cache=sys.argv[1])
"""


def test_a_killed_search_goes_on_with_the_same_result(
    whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of its own, which takes some seconds to start."""
    root = str(Path(stream.__file__).parents[4])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], env={**os.environ, "PYTHONPATH": root}
    )
    try:
        while not list(tmp_path.glob("progress/[!.]*.safetensors")):
            assert child.poll() is None
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    add, calls = Neighbours.add, list[None]()
    monkeypatch.setattr(Neighbours, "add", lambda *args: calls.append(add(*args)))
    assert same(evaluated(features_cache=tmp_path), whole)
    assert 0 < len(calls) <= 6  # of 8
    assert list(tmp_path.glob("progress/*")) == []
