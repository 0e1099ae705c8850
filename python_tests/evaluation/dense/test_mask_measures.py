from __future__ import annotations

import math

import numpy as np
import pytest

from franca_fast.evaluation.dense.mask_measures import (
    Mask,
    contour,
    contour_accuracy,
    region_similarity,
)


def plain_contour(mask: Mask) -> set[tuple[int, int]]:
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            below, right = min(y + 1, height - 1), min(x + 1, width - 1)
            others = {mask[y, right], mask[below, x], mask[below, right]}
            if others != {mask[y, x]}:
                found.add((y, x))
    return found


def plain_accuracy(truth: Mask, predicted: Mask, tolerance: float = 0.008) -> float:
    """Every pixel of one contour against every pixel of the other."""
    reach = math.ceil(tolerance * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    ours, theirs = plain_contour(truth), plain_contour(predicted)
    if not ours or not theirs:
        return float(not ours and not theirs)

    def share(points: set[tuple[int, int]], others: set[tuple[int, int]]) -> float:
        near = [any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in others) for y, x in points]
        return sum(near) / len(near)

    precision, recall = share(theirs, ours), share(ours, theirs)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(seed: int, size: tuple[int, int]) -> Mask:
    """A few rectangles."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(size, bool)
    for _ in range(generator.integers(1, 4)):
        top, left = (generator.integers(0, side) for side in size)
        high, wide = (generator.integers(1, side + 1) for side in size)
        mask[top : top + high, left : left + wide] ^= True
    return mask


@pytest.mark.parametrize("size", [(24, 31), (1, 9), (7, 1), (40, 12)])
@pytest.mark.parametrize("tolerance", [0.008, 0.06, 0.2])
def test_equals_the_definition(size: tuple[int, int], tolerance: float) -> None:
    for seed in range(8):
        truth, predicted = blobs(seed, size), blobs(seed + 100, size)
        assert {tuple(p) for p in np.argwhere(contour(truth))} == plain_contour(truth)
        expected = plain_accuracy(truth, predicted, tolerance)
        assert contour_accuracy(truth, predicted, tolerance=tolerance) == pytest.approx(expected)
        union = (truth | predicted).sum()
        expected = (truth & predicted).sum() / union if union else 1.0
        assert region_similarity(truth, predicted) == pytest.approx(expected)


def test_a_disc_of_the_480p_frames_reaches_8_pixels() -> None:
    truth, predicted = np.zeros((480, 854), bool), np.zeros((480, 854), bool)
    truth[100:200, 100:200] = True
    predicted[100:200, 108:208] = True
    assert contour_accuracy(truth, predicted) == 1.0
    further = np.roll(predicted, 1, axis=1)
    assert 0.5 < contour_accuracy(truth, further) < 1.0


def test_empty_masks() -> None:
    empty, full = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    full[3:6, 3:6] = True
    for measure in (region_similarity, contour_accuracy):
        assert measure(empty, empty) == 1.0
        assert measure(empty, full) == measure(full, empty) == 0.0


def test_void_pixels_never_count() -> None:
    truth, predicted = blobs(3, (20, 20)), blobs(4, (20, 20))
    void = np.zeros((20, 20), bool)
    void[:, 12:] = True
    other = predicted ^ (void & blobs(5, (20, 20)))
    for measure in (region_similarity, contour_accuracy):
        assert measure(truth, predicted, void) == measure(truth, other, void)
        assert measure(truth, predicted, void) == measure(truth & ~void, predicted & ~void)


def test_a_shifted_frame_of_zeros_changes_nothing() -> None:
    """Distances are only computed around the contours."""
    truth, predicted = (np.pad(blobs(seed, (12, 12)), 6) for seed in (1, 2))
    before = contour_accuracy(truth, predicted, tolerance=0.1)
    moved = [np.roll(mask, (3, -2), axis=(0, 1)) for mask in (truth, predicted)]
    assert contour_accuracy(*moved, tolerance=0.1) == before
