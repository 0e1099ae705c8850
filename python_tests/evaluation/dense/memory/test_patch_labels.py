from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.memory.patch_labels import (
    PatchLabels,
    class_map,
    kept_patches,
    nearest_indices,
    patch_class_counts,
    patch_scores,
)
from python_tests.evaluation.golden import arrays


def golden_counts() -> list[np.ndarray]:
    masks = arrays()["hbird.memory_masks"].numpy().astype(np.int64)
    masks[masks == 255] = 0
    return [patch_class_counts(mask, 6, 4) for mask in masks]


def test_labels_are_those_of_open_hummingbird() -> None:
    labels = np.concatenate(golden_counts()) / 14**2
    expected = arrays()["hbird.unbounded.memory_labels"].numpy()
    assert np.abs(labels - expected).max() < 1e-7


def test_scores_and_kept_patches_are_those_of_open_hummingbird() -> None:
    noise = arrays()["hbird.bounded.noise"].numpy()
    kept = []
    for i, counts in enumerate(golden_counts()):
        scores = patch_scores(counts)
        assert scores.tolist() == arrays()["hbird.bounded.scores"][i].tolist()
        kept.append(kept_patches(scores, noise[i], 10))
    assert np.array_equal(kept, arrays()["hbird.bounded.indices"].numpy())


@pytest.mark.parametrize(("grid", "patch", "n_classes"), [(1, 1, 1), (3, 5, 7), (4, 2, 3)])
def test_counts_and_scores_equal_loops(grid: int, patch: int, n_classes: int) -> None:
    mask = np.random.default_rng(0).integers(n_classes, size=(grid * patch, grid * patch))
    counts = patch_class_counts(mask, grid, n_classes)
    seen = []
    for row in range(grid):
        for column in range(grid):
            cell = mask[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            seen.append(set(cell.ravel().tolist()))
            plain = [int((cell == c).sum()) for c in range(n_classes)]
            assert counts[row * grid + column].tolist() == plain
    frequency = [sum(c in classes for classes in seen) for c in range(n_classes)]
    assert patch_scores(counts).tolist() == [sum(frequency[c] for c in s) for s in seen]


def test_a_mask_that_does_not_fit_is_refused() -> None:
    for shape in ((6, 8), (7, 7)):
        with pytest.raises(InputError, match=r"mask: .*; accepted: a square whose sides 3 divides"):
            patch_class_counts(np.zeros(shape, np.int64), 3, 2)


def test_equal_scores_keep_the_first_patches() -> None:
    assert kept_patches(np.array([2, 2, 1, 2]), np.ones(4), 3).tolist() == [2, 0, 1]


@pytest.mark.parametrize(("side", "size"), [(84, 84), (500, 518), (375, 518), (1, 3), (900, 518)])
def test_nearest_is_that_of_pytorch(side: int, size: int) -> None:
    line = torch.arange(side, dtype=torch.float32)[None, None]
    expected = torch.nn.functional.interpolate(line, size, mode="nearest")[0, 0]
    assert nearest_indices(side, size).tolist() == expected.long().tolist()


@pytest.fixture
def counts() -> list[np.ndarray]:
    """Three images of 5 patches, 6 classes: sparse, of 12 pixels each."""
    rng = np.random.default_rng(1)
    return [rng.multinomial(12, rng.dirichlet(np.full(6, 0.2)), size=5) for _ in range(3)]


def labels_of(counts: list[np.ndarray], order: list[int]) -> PatchLabels:
    labels = PatchLabels(3, 5, 6)
    for image in order:
        labels.add(image, counts[image])
    return labels


def test_mixed_labels_equal_loops(counts: list[np.ndarray]) -> None:
    weights = torch.rand(7, 4, dtype=torch.float64)
    weights[2, 1:] = 0
    patches = torch.randint(15, (7, 4))
    patches[2, 1:] = torch.iinfo(torch.int64).max
    mixed = labels_of(counts, [2, 0, 1]).mixed(weights, patches)
    for q in range(7):
        expected = [0.0] * 6
        for weight, patch in zip(weights[q].tolist(), patches[q].tolist(), strict=True):
            if weight:
                label = counts[patch // 5][patch % 5]
                expected = [e + weight * n / 12 for e, n in zip(expected, label, strict=True)]
        assert mixed[q].tolist() == pytest.approx(expected, abs=1e-15)


def test_nothing_to_mix_is_nothing(counts: list[np.ndarray]) -> None:
    mixed = labels_of(counts, [0, 1, 2]).mixed(torch.zeros(2, 3).double(), torch.zeros(2, 3).long())
    assert mixed.tolist() == [[0.0] * 6] * 2


def test_labels_come_back_from_a_state_and_go_on(counts: list[np.ndarray]) -> None:
    weights, patches = torch.rand(4, 15, dtype=torch.float64), torch.arange(15).repeat(4, 1)
    whole = labels_of(counts, [0, 1, 2]).mixed(weights, patches)
    state = labels_of(counts, [1]).state()
    restored = PatchLabels(3, 5, 6)
    restored.restore(state)
    restored.add(2, counts[2])
    restored.restore(restored.state())
    restored.add(0, counts[0])
    assert torch.equal(restored.mixed(weights, patches), whole)


def plain_map(soft: torch.Tensor, height: int, width: int) -> list[list[int]]:
    """Bilinear interpolation between the centres of cells, written out."""
    h, w, n_classes = soft.shape
    found = []
    for y in range(height):
        line = []
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            top, left = math.floor(v), math.floor(u)
            low, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = v - top, u - left
            values = [
                (1 - a) * ((1 - b) * soft[top, left, c] + b * soft[top, right, c])
                + a * ((1 - b) * soft[low, left, c] + b * soft[low, right, c])
                for c in range(n_classes)
            ]
            line.append(max(range(n_classes), key=lambda c: float(values[c])))
        found.append(line)
    return found


@pytest.mark.parametrize(("h", "w", "height", "width"), [(1, 1, 3, 2), (3, 2, 7, 11), (4, 4, 3, 3)])
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_class_map_equals_loops_whatever_is_held_at_a_time(
    h: int, w: int, height: int, width: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("franca_fast.evaluation.dense.memory.patch_labels")
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", at_once)
    soft = torch.rand(h, w, 5, dtype=torch.float64)
    soft[..., [1, 3]] = 0  # classes that occur nowhere
    assert class_map(soft, (height, width)).tolist() == plain_map(soft, height, width)


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_of_equal_classes_the_first_one_counts(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("franca_fast.evaluation.dense.memory.patch_labels")
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", at_once)
    soft = torch.tensor([0.1, 0.3, 0.3, 0.3]).expand(2, 2, 4)
    assert class_map(soft, (3, 3)).unique().tolist() == [1]


@pytest.mark.parametrize("memory", ["unbounded", "bounded"])
@pytest.mark.parametrize("k", [5, 30])
def test_class_maps_are_those_of_open_hummingbird(memory: str, k: int) -> None:
    soft = arrays()[f"hbird.{memory}.k{k}.soft"]
    maps = [class_map(image.view(6, 6, 4), (84, 84)) for image in soft]
    expected = arrays()[f"hbird.{memory}.k{k}.class_map"]
    assert torch.equal(torch.stack(maps), expected.long())
