"""Which class a cluster of pixels stands for: matchings of clusters and classes.

All start from the counts of pixels, int64 [K, C]: how many pixels of cluster k have class c. Pixels
without a class are not among them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from franca_fast.evaluation.dense.segmentation_score import Confusion
from franca_fast.evaluation.extras import need

UNMATCHED = 0  # the class of clusters that no class is left for, or that have no pixels


def hungarian(counts: Tensor) -> Tensor:
    """One cluster per class, such that the sum of their IoUs is the largest.

    The clusters that are left over become class 0; of a class that is left over (fewer clusters
    than classes) nothing is predicted.

    Args:
        counts: pixels, int64 [K, C].

    Returns:
        the class of each cluster, int64 [K].

    Raises:
        InputError: scipy is not installed.

    Example:
        >>> hungarian(torch.tensor([[5, 0], [4, 3], [0, 1]]))
        tensor([0, 1, 0])
    """
    assign = need("scipy.optimize", "the matching of clusters").linear_sum_assignment
    clusters, classes = assign(_iou(counts).numpy(), maximize=True)
    matched = torch.full((len(counts),), UNMATCHED, device="cpu")
    matched[torch.from_numpy(clusters)] = torch.from_numpy(classes)
    return matched


def many_to_one_iou(counts: Tensor) -> Tensor:
    """For each cluster by itself the class with which its IoU is the largest.

    The first class wins ties; a cluster without pixels becomes class 0.

    Args:
        counts: pixels, int64 [K, C].

    Returns:
        the class of each cluster, int64 [K].

    Example:
        >>> many_to_one_iou(torch.tensor([[9, 0], [3, 2], [0, 0]]))
        tensor([0, 1, 0])
    """
    return _first_largest(_iou(counts))


def many_to_one_precision(counts: Tensor) -> Tensor:
    """For each cluster by itself the class of most of its pixels.

    The first class wins ties; a cluster without pixels becomes class 0.

    Args:
        counts: pixels, int64 [K, C].

    Returns:
        the class of each cluster, int64 [K].

    Example:
        >>> many_to_one_precision(torch.tensor([[9, 0], [3, 2], [0, 0]]))
        tensor([0, 0, 0])
    """
    return _first_largest(counts)


def precision_then_hungarian(counts: Tensor) -> Tensor:
    """Clusters grouped by the class of most of their pixels, then groups and classes one to one.

    The paper's text, "greedily by precision, then Hungarian", of which no public code is known,
    read as: the clusters that `many_to_one_precision` gives one class become one group; of the at
    most C groups each stands for one class, such that the sum of their IoUs is the largest.

    Args:
        counts: pixels, int64 [K, C].

    Returns:
        the class of each cluster, int64 [K].

    Raises:
        InputError: scipy is not installed.

    Example:
        >>> precision_then_hungarian(torch.tensor([[6, 0], [4, 3], [0, 5]]))
        tensor([0, 0, 1])
    """
    groups = many_to_one_precision(counts)
    n_classes = counts.shape[1]
    together = counts.new_zeros(n_classes, n_classes).index_add_(0, groups, counts)
    return hungarian(together)[groups]


Matching = Callable[[Tensor], Tensor]


def confusion_of(counts: Tensor, classes: Tensor) -> Confusion:
    """What it comes to when each cluster predicts the class that it is matched with.

    Args:
        counts: pixels, int64 [K, C].
        classes: of the clusters, int64 [K].

    Example:
        >>> confusion_of(torch.tensor([[5, 0], [4, 3], [0, 1]]), torch.tensor([0, 1, 1])).matrix
        tensor([[5, 4],
                [0, 4]])
    """
    confusion = Confusion(counts.shape[1])
    confusion.matrix.index_add_(1, classes, counts.T.contiguous())
    return confusion


def _iou(counts: Tensor) -> Tensor:
    """Of each cluster with each class, float64 [K, C]; 0 where neither has pixels."""
    both = counts.double()
    either = both.sum(1, keepdim=True) + both.sum(0) - both
    return both / either.clamp(min=1)


def _first_largest(scores: Tensor) -> Tensor:
    """The first column with the largest value of each row, as argmax of PyTorch need not give."""
    return torch.from_numpy(scores.numpy().argmax(1))
