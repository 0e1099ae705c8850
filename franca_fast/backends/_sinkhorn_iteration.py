"""The iteration of Sinkhorn-Knopp over the passes of any backend."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from franca_fast.backends.contracts import Scores


def balance(
    column_logsumexp: Callable[[Scores, float, int], tuple[Tensor, Tensor]],
    row_step: Callable[[Scores, float, Tensor, int, bool], tuple[Tensor, Tensor | None]],
    scores: Scores,
    temperature: float,
    n_iterations: int,
    n_valid: int,
    ranks: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Potentials of prototypes [sum K] and rows [H, N], by passes with collectives between them.

    All in place: beside few rows, every vector over all prototypes counts.
    """
    maximum, total = column_logsumexp(scores, temperature, n_valid)
    if ranks is not None:
        own = maximum.clone()
        dist.all_reduce(maximum, dist.ReduceOp.MAX, ranks)
        # A rank without rows has maximum -inf and total 0; -inf - -inf must not become nan.
        total.mul_(own.sub_(maximum).nan_to_num_(nan=0.0).exp_())
        del own
        dist.all_reduce(total, dist.ReduceOp.SUM, ranks)
    # Without any row on any rank there is nothing to balance: the logarithms are -inf.
    potentials = total.log_().add_(maximum).neg_().nan_to_num_(math.nan, posinf=0.0)
    del maximum, total
    for _ in range(n_iterations - 1):
        _, mass = row_step(scores, temperature, potentials, n_valid, True)
        assert mass is not None
        if ranks is not None:
            dist.all_reduce(mass, dist.ReduceOp.SUM, ranks)
        potentials.sub_(mass.log_().nan_to_num_(math.nan, neginf=0.0))
        del mass  # not to be held while the next one is made
    row_potentials, _ = row_step(scores, temperature, potentials, n_valid, False)
    return potentials, row_potentials
