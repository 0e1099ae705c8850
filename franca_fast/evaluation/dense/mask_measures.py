"""How well a mask fits: region and contour, as DAVIS measures them (Perazzi et al. 2016)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from franca_fast.evaluation.extras import need

Mask = npt.NDArray[np.bool_]

TOLERANCE = 0.008


def region_similarity(truth: Mask, predicted: Mask, void: Mask | None = None) -> float:
    """J: intersection over union of two masks; 1 where both are empty.

    Args:
        truth: bool [H, W].
        predicted: bool [H, W].
        void: pixels that do not count.

    Example:
        >>> a = np.array([[True, True, False]])
        >>> region_similarity(a, np.array([[False, True, True]]))
        0.3333333333333333
    """
    if void is not None:
        truth, predicted = truth & ~void, predicted & ~void
    union = int(np.count_nonzero(truth | predicted))
    return int(np.count_nonzero(truth & predicted)) / union if union else 1.0


def contour_accuracy(
    truth: Mask, predicted: Mask, void: Mask | None = None, tolerance: float = TOLERANCE
) -> float:
    """F: harmonic mean of precision and recall of a mask's contour.

    A pixel of one contour is right when the other contour passes within
    r = ceil(`tolerance` x diagonal of the image) pixels of it (a disc). Without any contour in one
    mask F is 0, and 1 without any in both.

    Args:
        truth: bool [H, W].
        predicted: bool [H, W].
        void: pixels that do not count.
        tolerance: share of the image's diagonal.

    Example:
        >>> a = np.zeros((8, 8), bool)
        >>> a[2:5, 2:5] = True
        >>> contour_accuracy(a, np.roll(a, 1)), contour_accuracy(a, np.roll(a, 3, axis=(0, 1)))
        (1.0, 0.3157894736842105)
    """
    if void is not None:
        truth, predicted = truth & ~void, predicted & ~void
    reach = math.ceil(tolerance * math.hypot(*truth.shape))
    contours = [contour(truth), contour(predicted)]
    if not contours[0].any() and not contours[1].any():
        return 1.0
    if not contours[0].any() or not contours[1].any():
        return 0.0
    # Distances are only asked for on contours, so that the rest of the image plays no part.
    rows, columns = (np.flatnonzero((contours[0] | contours[1]).any(axis)) for axis in (1, 0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    ours, theirs = (one[window] for one in contours)
    recall, precision = _share_within(ours, theirs, reach), _share_within(theirs, ours, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbour in the image.

    Args:
        mask: bool [H, W].

    Example:
        >>> contour(np.array([[False, False, True]])).astype(int)
        array([[0, 1, 0]])
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, beyond = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ beyond)


def _share_within(points: Mask, others: Mask, reach: int) -> float:
    """The share of some pixels that have one of the others within a disc."""
    distances = need("scipy.ndimage", "the contour of masks").distance_transform_edt(~others)
    return float((distances[points] <= reach).mean())
