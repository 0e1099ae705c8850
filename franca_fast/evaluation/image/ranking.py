"""Figures of ranked lists: average precision in two definitions, recall and precision."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks_of_positives(relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Where the relevant entries of ranked lists stand.

    Args:
        relevant: bool [b, n], in the order of the ranking.

    Returns:
        float64 [b, n]: the how manieth relevant entry each is, from 1; and its rank, from 1. Both
        are infinite at entries that are not relevant.

    Example:
        >>> ranks_of_positives(torch.tensor([[False, True]]))
        (tensor([[inf, 1.]], dtype=torch.float64), tensor([[inf, 2.]], dtype=torch.float64))
    """
    rank = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64, device=relevant.device)
    outside = ~relevant
    number = relevant.cumsum(1).double().masked_fill(outside, torch.inf)
    return number, rank.expand_as(number).masked_fill(outside, torch.inf)


def average_precision(relevant: Tensor) -> Tensor:
    """The mean of the precision at each relevant entry: sum_j j / rank_j over their number.

    The definition of TREC and of `sklearn.metrics.average_precision_score`.

    Args:
        relevant: bool [b, n], in the order of the ranking.

    Returns:
        float64 [b]; NaN where nothing is relevant.

    Example:
        >>> average_precision(torch.tensor([[True, False, True]]))
        tensor([0.8333], dtype=torch.float64)
    """
    number, rank = ranks_of_positives(relevant)
    return (number / rank).masked_fill(~relevant, 0).sum(1) / relevant.sum(1)


def trapezoidal_average_precision(relevant: Tensor) -> Tensor:
    """The area under the precision-recall curve by trapezoids, as DINO's retrieval has it.

    At the j-th relevant entry the trapezoid has the precision there, j / rank, and the precision
    just before it, (j - 1) / (rank - 1), or 1 at the first rank (Philbin et al. 2007; the Oxford
    and Paris benchmarks). Mostly lower than `average_precision`.

    Args:
        relevant: bool [b, n], in the order of the ranking.

    Returns:
        float64 [b]; NaN where nothing is relevant.

    Example:
        >>> trapezoidal_average_precision(torch.tensor([[True, False, True]]))
        tensor([0.7917], dtype=torch.float64)
    """
    number, rank = ranks_of_positives(relevant)
    before = torch.where(rank == 1, 1.0, (number - 1) / (rank - 1))
    heights = ((before + number / rank) / 2).masked_fill(~relevant, 0)
    return heights.sum(1) / relevant.sum(1)


def recall_at(relevant: Tensor, k: int) -> Tensor:
    """Whether a relevant entry is among the first k, as metric learning has recall@k.

    Args:
        relevant: bool [b, n], in the order of the ranking.
        k: number of entries that count.

    Returns:
        bool [b].

    Example:
        >>> recall_at(torch.tensor([[False, True]]), 1)
        tensor([False])
    """
    return relevant[:, :k].any(1)


def precision_at(relevant: Tensor, k: int) -> Tensor:
    """The share of relevant entries among the first min(k, rank of the last relevant one): DINO's.

    Args:
        relevant: bool [b, n], in the order of the ranking.
        k: number of entries that count.

    Returns:
        float64 [b]; NaN where nothing is relevant.

    Example:
        >>> precision_at(torch.tensor([[True, True, False, False]]), 3)
        tensor([1.], dtype=torch.float64)
    """
    rank = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    last = (relevant * rank).amax(1).clamp(max=k)
    found = (relevant & (rank <= last[:, None])).sum(1)
    return found.double() / last
