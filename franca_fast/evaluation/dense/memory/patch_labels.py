"""Labels of patches: how often each class occurs among a patch's pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from franca_fast.errors import InputError

_NUMBERS_AT_ONCE = 2**24  # pixels x classes that are upsampled at a time


def nearest_indices(side: int, size: int) -> NDArray[np.int64]:
    """Which of `side` pixels each of `size` shows, as PyTorch's "nearest" takes them.

    Example:
        >>> nearest_indices(4, 6).tolist()
        [0, 0, 1, 2, 2, 3]
    """
    return np.arange(size, dtype=np.int64) * side // size


def patch_class_counts(mask: NDArray[np.integer], grid: int, n_classes: int) -> NDArray[np.int64]:
    """Pixels of each class in each patch of a square mask.

    Args:
        mask: [S, S], classes below `n_classes`; S is a multiple of `grid`.
        grid: patches along a side.
        n_classes: C.

    Returns:
        int64 [grid * grid, C], patches in the order of rows.

    Example:
        >>> patch_class_counts(np.array([[0, 1], [1, 1]]), 1, 3).tolist()
        [[1, 3, 0]]
    """
    size = len(mask)
    if mask.shape != (size, size) or size % grid:
        raise InputError(f"mask: {mask.shape}; accepted: a square whose sides {grid} divides")
    line = np.arange(size) // (size // grid)
    patch = line[:, None] * grid + line
    counts = np.bincount((patch * n_classes + mask).ravel(), minlength=grid * grid * n_classes)
    return counts.reshape(grid * grid, n_classes).astype(np.int64)


def patch_scores(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """How common the classes of each patch are in its image.

    The sum, over the classes that a patch shows, of the number of the image's patches that show
    the class. Patches with the smallest scores, times noise, are kept in a bounded memory, so that
    rare classes stay (Balažević et al. 2023, appendix; open-hummingbird).

    Args:
        counts: [patches, C], from `patch_class_counts`.

    Returns:
        int64 [patches].

    Example:
        >>> patch_scores(np.array([[4, 0], [3, 1], [4, 0]])).tolist()
        [3, 4, 3]
    """
    present = (counts > 0).astype(np.int64)
    return present @ present.sum(0)


def kept_patches(
    scores: NDArray[np.integer], noise: NDArray[np.floating], k: int
) -> NDArray[np.intp]:
    """The k patches with the smallest score x noise, in this order; of equal ones the first.

    Example:
        >>> kept_patches(np.array([3, 4, 3]), np.array([0.5, 0.1, 0.9]), 2).tolist()
        [1, 0]
    """
    return np.argsort(scores * noise, kind="stable")[:k]


class PatchLabels:
    """Class frequencies of the patches of many images; only classes that occur take memory.

    Args:
        n_images: how many.
        patches: of an image.
        n_classes: C.

    Example:
        >>> labels = PatchLabels(1, 2, 3)
        >>> labels.add(0, np.array([[1, 3, 0], [0, 0, 4]]))
        >>> weights, patches = torch.tensor([[0.5, 0.5]]), torch.tensor([[0, 1]])
        >>> labels.mixed(weights, patches).tolist()
        [[0.125, 0.375, 0.5]]
    """

    def __init__(self, n_images: int, patches: int, n_classes: int) -> None:
        self._patches, self._n_classes = patches, n_classes
        none = np.zeros(0, np.int32)
        self._lengths = np.zeros((n_images, patches), np.uint16)  # classes of each patch
        self._classes = [none] * n_images  # of all patches of an image, one after the other
        self._pixels = [none] * n_images  # of each of these classes
        self._flat: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]] | None = None

    def add(self, image: int, counts: NDArray[np.integer]) -> None:
        """Keeps the labels of an image.

        Args:
            image: its number.
            counts: [patches, C], from `patch_class_counts`.
        """
        patch, classes = counts.nonzero()
        self._lengths[image] = np.bincount(patch, minlength=self._patches)
        self._classes[image] = classes.astype(np.int32)
        self._pixels[image] = counts[patch, classes].astype(np.int32)
        self._flat = None

    def mixed(self, weights: Tensor, patches: Tensor) -> Tensor:
        """Weighted sums of labels.

        Args:
            weights: float64 [q, k].
            patches: int64 [q, k], numbers of patches: the image's x patches of an image + that in
                the image. Where the weight is 0 any number will do.

        Returns:
            float64 [q, C].
        """
        begins, classes, pixels = self._joined()
        used = weights.numpy() > 0
        rows, chosen = used.nonzero()[0], patches.numpy()[used]
        lengths = begins[chosen + 1] - begins[chosen]
        before = np.cumsum(lengths) - lengths
        entries = np.repeat(begins[chosen] - before, lengths) + np.arange(lengths.sum())
        patch_pixels = np.add.reduceat(pixels[entries], before) if len(before) else before
        frequencies = pixels[entries] / np.repeat(patch_pixels, lengths)
        shares = np.repeat(weights.numpy()[used], lengths) * frequencies
        targets = np.repeat(rows, lengths) * self._n_classes + classes[entries]
        sums = np.bincount(targets, shares, len(weights) * self._n_classes)
        return torch.from_numpy(sums.reshape(len(weights), self._n_classes))

    def _joined(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
        """Where the entries of each patch begin, and the last end; all classes; all pixels."""
        if self._flat is None:
            ends = np.cumsum(self._lengths.ravel(), dtype=np.int64)
            begins = np.concatenate([np.zeros(1, np.int64), ends])
            self._flat = begins, np.concatenate(self._classes), np.concatenate(self._pixels)
            self._split()  # so that nothing is there twice
        return self._flat

    def state(self) -> dict[str, Tensor]:
        """All that was added, to be kept in a file."""
        _, classes, pixels = self._joined()
        return {
            "lengths": torch.from_numpy(self._lengths.astype(np.int32)),
            "classes": torch.from_numpy(classes),
            "pixels": torch.from_numpy(pixels),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave of labels of the same shape."""
        self._lengths[:] = state["lengths"].numpy()
        ends = np.cumsum(self._lengths.ravel(), dtype=np.int64)
        begins = np.concatenate([np.zeros(1, np.int64), ends])
        self._flat = begins, state["classes"].numpy(), state["pixels"].numpy()
        self._split()

    def _split(self) -> None:
        """Makes the entries of each image a part of those of all."""
        begins, classes, pixels = self._joined()
        ends = begins[self._patches : -1 : self._patches]
        self._classes, self._pixels = np.split(classes, ends), np.split(pixels, ends)


def class_map(soft: Tensor, size: tuple[int, int]) -> Tensor:
    """The likeliest class of each pixel, from soft predictions of patches.

    They are upsampled bilinearly (corners not aligned); of equal classes the first one counts.

    Args:
        soft: [h, w, C], not negative.
        size: (H, W) of the result.

    Returns:
        int64 [H, W].

    Example:
        >>> class_map(torch.tensor([[[0.7, 0.3], [0.1, 0.9]]]), (1, 4)).tolist()
        [[0, 0, 1, 1]]
    """
    # Large images of data sets with many classes would fill the memory at once; most classes occur
    # nowhere in an image.
    occurring = soft.flatten(0, 1).amax(0).nonzero().flatten()
    best = torch.full(size, -1.0)
    found = torch.zeros(size, dtype=torch.int64)
    for classes in occurring.split(max(1, _NUMBERS_AT_ONCE // (size[0] * size[1]))):
        planes = soft[..., classes].permute(2, 0, 1).float()
        large = F.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
        value, place = large.max(0)
        found = torch.where(value > best, classes[place], found)
        best = torch.maximum(best, value)
    return found
