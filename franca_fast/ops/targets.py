"""Targets of the clustering loss: balanced (Sinkhorn-Knopp) or centred (DINO) assignments.

Both are assignments Q = exp(z/T + a + b) of teacher scores z, never written out: the loss rebuilds
them from z, the potentials a and b, and the temperature T, which therefore belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from franca_fast.backends.contracts import Scores, ScoresLike, potential_dtype
from franca_fast.ops import _checks
from franca_fast.ops._library import define, unpacked
from franca_fast.ops.sinkhorn import (
    SinkhornPotentials,
    by_heads,
    constants,
    fake_row_potentials,
    passes_over,
    sinkhorn_potentials,
)


class ClusteringTargets(NamedTuple):
    """Teacher assignments Q = exp(z/T + a + b) of every nested head, never written out.

    Attributes:
        scores: z.
        potentials: a and b.
        temperature: T.
        mean_scores: Mean of the valid rows of z over all ranks, for each head [K_i], by which a
            centre moves; None for balanced targets, which have none.
    """

    scores: Scores
    potentials: SinkhornPotentials
    temperature: float
    mean_scores: tuple[Tensor, ...] | None = None


def sinkhorn_targets(
    logits: ScoresLike,
    temperature: float,
    n_iterations: int = 3,
    *,
    n_valid: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> ClusteringTargets:
    """Balanced assignments of rows to prototypes as targets of `clustering_cross_entropy`.

    Arguments and errors are those of `sinkhorn_potentials`.

    Returns:
        The scores as given, their potentials, and the temperature.

    Example:
        >>> import torch, franca_fast as ff
        >>> targets = ff.ops.sinkhorn_targets(torch.randn(6, 32), temperature=0.05)
        >>> loss = ff.ops.clustering_cross_entropy(torch.randn(6, 32), targets)
    """
    potentials = sinkhorn_potentials(
        logits, temperature, n_iterations, n_valid=n_valid, group=group
    )
    return ClusteringTargets(Scores.of(logits), potentials, temperature)


def centered_targets(
    logits: ScoresLike,
    temperature: float,
    center: Sequence[Tensor],
    *,
    n_valid: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> ClusteringTargets:
    """Assignments softmax((z - c) / T), DINO's centering (arXiv 2104.14294), as targets.

    As potentials they are a[k] = -c[k] / T and b[n] = -log sum_k exp(z/T + a[k]), so that one loss
    serves both kinds of targets.

    Args:
        logits: As in `sinkhorn_potentials`.
        temperature: T, from 1e-6 to 1e6.
        center: c, for each head [K_i], float32 (float64 for float64 logits).
        n_valid: As in `sinkhorn_potentials`.
        group: Process group over whose ranks the rows are spread, for their mean.

    Returns:
        The scores as given, their potentials, the temperature, and the mean of the valid rows.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch, franca_fast as ff
        >>> targets = ff.ops.centered_targets(torch.randn(6, 32), 0.05, [torch.zeros(32)])
        >>> targets.mean_scores[0].shape
        torch.Size([32])
    """
    value = _checks.temperature("temperature", temperature)
    _checks.group_name(group)
    scores = _checks.scores("logits", logits)
    given = _checks.as_tensors("center", center, "a tensor [K_i]")
    _checks.potentials("center", given, [(k,) for k in scores.columns], scores.values[0])
    valid = _checks.valid_rows(n_valid, scores.n_rows)
    a = -torch.cat([c.detach() for c in given]) / value
    row = _row_potentials(*constants(scores), value, a, valid)
    potentials = by_heads(a, row, scores)
    with torch.no_grad():
        mean = _mean_scores(scores, valid, group)
    return ClusteringTargets(Scores.of(logits), potentials, temperature, mean)


def _mean_scores(
    scores: Scores, n_valid: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, ...]:
    dtype = potential_dtype(scores.values[0])
    sums = [z[:n_valid].sum(dim=0, dtype=dtype) for z in scores.values]
    if scores.streamed:
        # The scores are linear in the features, and so are their sums.
        factors = zip(sums, scores.prototypes, scores.scales, strict=True)
        sums = [scale * (v.to(dtype) @ x) for x, v, scale in factors]
    buffer = torch.cat([*sums, sums[0].new_full((1,), float(n_valid))])
    if group is not None:
        dist.all_reduce(buffer, group=group)
    mean = buffer[:-1] / buffer[-1].clamp(min=1.0)
    return mean.split([z.shape[0] for z in sums])


def _row_potentials_impl(
    tensors: list[Tensor],
    n_heads: int,
    temperature: float,
    prototype_potentials: Tensor,
    n_valid: int,
) -> Tensor:
    scores = unpacked(tensors, n_heads)
    passes = passes_over(scores)
    row, _ = passes.row_step(scores, temperature, prototype_potentials, n_valid, False)
    return row


_row_potentials = define(
    "row_potentials(Tensor[] scores, int n_heads, float temperature, Tensor prototype_potentials, "
    "SymInt n_valid) -> Tensor",
    _row_potentials_impl,
    fake_row_potentials,
)
