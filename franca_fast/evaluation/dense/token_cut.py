"""The main object of an image as a normalised cut of its patches (TokenCut, Wang et al. 2022)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from franca_fast.evaluation.extras import need

Array = npt.NDArray[Any]
Box = tuple[float, float, float, float]

_PURPOSE = "object discovery"
_SAME_EIGENVALUE = 1e-10  # of a matrix whose eigenvalues lie in 0..2
_SAME_ENTRY = 1e-6  # relative to the largest entry


class Cut(NamedTuple):
    """What the normalised cut makes of a grid of patches.

    Attributes:
        eigenvector: float64 [h, w], with the sign that puts the seed into the foreground.
        foreground: bool [h, w], entries above the mean.
        components: int [h, w], 1, 2, ... for the 4-connected parts of the foreground, else 0.
        seed: index of the patch with the largest absolute entry, row by row.
        mask: bool [h, w], the component of the seed.
    """

    eigenvector: Array
    foreground: Array
    components: Array
    seed: int
    mask: Array


def token_cut(features: Array, tau: float = 0.2, eps: float = 1e-5) -> Cut:
    """Cuts a grid of patches in two and takes the object that stands out most.

    Patches i and j are joined by A_ij = 1 where their cosine is above `tau`, else `eps`. With
    D = diag(sum_j A_ij), the second smallest generalised eigenvector of (D - A) x = lambda D x
    tells the sides of the normalised cut: foreground is what lies on the side of the seed, the
    patch of the largest |x|, beyond the mean. The object is the seed's 4-connected component.

    Clean images make two kinds of ties, which the original leaves to rounding. Where the second
    eigenvalue is repeated (within 1e-10), x is the vector of its eigenspace in which the first
    patch weighs most (the second, where the first is 0 in all of them, and so on). Where several
    patches have the largest |x| (within 1e-6 of it), the first of them, row by row, is the seed.

    Args:
        features: [h, w, d], keys or tokens of the patches, not normalised.
        tau: threshold of the cosine.
        eps: weight of what is not joined.

    Raises:
        InputError: scipy is not installed.

    Example:
        >>> features = np.zeros((3, 4, 2))
        >>> features[..., 0] = 1
        >>> features[1:, 2:] = (0, 1)
        >>> token_cut(features).mask.astype(int)
        array([[0, 0, 0, 0],
               [0, 0, 1, 1],
               [0, 0, 1, 1]])
    """
    height, width = features.shape[:2]
    vector = second_eigenvector(affinity(features.reshape(height * width, -1), tau, eps))
    size = np.abs(vector)
    seed = int(np.argmax(size >= size.max() * (1 - _SAME_ENTRY)))
    if vector[seed] <= vector.mean():
        vector = -vector
    foreground = (vector > vector.mean()).reshape(height, width)
    components, _ = need("scipy.ndimage", _PURPOSE).label(foreground)
    mask = components == components.flat[seed]
    return Cut(vector.reshape(height, width), foreground, components, seed, mask)


def affinity(features: Array, tau: float, eps: float) -> Array:
    """Graph of patches: 1 where the cosine of two is above `tau`, else `eps`.

    Args:
        features: [n, d].
        tau: threshold of the cosine, exclusive.
        eps: weight of what is not joined.

    Returns:
        float64 [n, n].

    Example:
        >>> affinity(np.eye(2), 0.2, 0.5)
        array([[1. , 0.5],
               [0.5, 1. ]])
    """
    exact = features.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit = exact / np.maximum(lengths, 1e-12)
    return np.where(unit @ unit.T > tau, 1.0, eps)


def second_eigenvector(weights: Array) -> Array:
    """The second smallest generalised eigenvector x of (D - A) x = lambda D x.

    Solved in the symmetric form: y = D^(1/2) x is an eigenvector of I - D^(-1/2) A D^(-1/2). For
    repeated eigenvalues see `token_cut`.

    Args:
        weights: A, float64 [n, n], symmetric and positive.

    Returns:
        float64 [n], with x^T D x = 1 and any sign.

    Example:
        >>> x = second_eigenvector(np.array([[1.0, 0.1], [0.1, 1.0]]))
        >>> np.abs(x).round(4), bool(x.prod() < 0)
        (array([0.6742, 0.6742]), True)
    """
    n = len(weights)
    if n == 1:  # nothing to cut: the patch itself is the object
        return np.ones(1) / np.sqrt(weights[0])
    eigh = need("scipy.linalg", _PURPOSE).eigh
    scale = 1 / np.sqrt(weights.sum(1))
    laplacian = np.eye(n) - scale[:, None] * weights * scale
    values, vectors = eigh(laplacian, subset_by_index=[1, min(2, n - 1)])
    chosen = vectors[:, 0]
    if n > 2 and values[1] - values[0] <= _SAME_EIGENVALUE:
        around = (values[0] - _SAME_EIGENVALUE, values[0] + _SAME_EIGENVALUE)
        _, space = eigh(laplacian, subset_by_value=around)
        lengths = np.linalg.norm(space, axis=1)
        first = int(np.argmax(lengths > _SAME_ENTRY))
        chosen = space @ space[first] / lengths[first]
    return scale * chosen


def box_of(mask: Array, patch_size: int, image_size: tuple[int, int]) -> Box:
    """The box of a mask of patches in pixels, clipped to the image.

    Args:
        mask: bool [h, w], not empty.
        patch_size: pixels a patch has along a side.
        image_size: (height, width) of the image, which may end within the last patches.

    Returns:
        xmin, ymin, xmax, ymax; the last two are exclusive.

    Example:
        >>> box_of(np.array([[False, True], [False, True]]), 14, (20, 25))
        (14.0, 0.0, 25.0, 20.0)
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    bottom = min((rows[-1] + 1) * patch_size, image_size[0])
    right = min((columns[-1] + 1) * patch_size, image_size[1])
    return float(columns[0] * patch_size), float(rows[0] * patch_size), float(right), float(bottom)


def box_ious(box: Box, others: Array) -> Array:
    """Intersection over union of a box with others.

    Args:
        box: xmin, ymin, xmax, ymax.
        others: [n, 4] of the same.

    Returns:
        float64 [n].

    Example:
        >>> box_ious((0, 0, 2, 2), np.array([[0, 0, 2, 4], [3, 3, 4, 4]]))
        array([0.5, 0. ])
    """
    others = others.astype(np.float64)
    low, high = np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    own = (box[2] - box[0]) * (box[3] - box[1])
    return shared / (own + areas - shared)
