"""Clustering on scores that are never stored: a block of rows at a time is scored and consumed.

Each block goes through the kernels of stored scores, whichever backend runs them, so this adds only
the recomputation. Extra memory is one block of scores for the student and one for the teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from franca_fast.backends._sinkhorn_iteration import balance
from franca_fast.backends.contracts import ClusteringProblem, Scores, potential_dtype
from franca_fast.backends.registry import choose

# Scores of one block: 32 MiB in float32.
_BLOCK_SCORES = 1 << 23


class _Head(NamedTuple):
    """One head: features [N, C], prototypes [K, C], scales [K]."""

    features: Tensor
    prototypes: Tensor
    scales: Tensor

    def scores(self, rows: slice | Tensor) -> Scores:
        """Scores of some rows, stored."""
        x = self.features[rows]
        own = Scores([x], [self.prototypes], [self.scales])
        return Scores(choose("prototype_scores", x).forward(own))

    def blocks(self, n_rows: int, blocks_at_once: int = 1) -> Iterator[slice]:
        step = max(1, _BLOCK_SCORES // (self.prototypes.shape[0] * blocks_at_once))
        return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _heads(scores: Scores) -> list[_Head]:
    return [_Head(*factors) for factors in zip(*scores, strict=True)]


def potentials(
    scores: Scores, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    return balance(column_logsumexp, row_step, scores, temperature, n_iterations, n_valid)


def column_logsumexp(scores: Scores, temperature: float, n_valid: int) -> tuple[Tensor, Tensor]:
    passes, dtype = choose("sinkhorn", scores.values[0]), potential_dtype(scores.values[0])
    maxima, totals = [], []
    for head in _heads(scores):
        maximum = head.scales.new_full(head.scales.shape, float("-inf"), dtype=dtype)
        total = torch.zeros_like(maximum)
        for block in head.blocks(n_valid):
            z = head.scores(block)
            block_maximum, block_total = passes.column_logsumexp(z, temperature, z.n_rows)
            larger = torch.maximum(maximum, block_maximum)
            # exp(-inf - larger) is 0: the first block replaces the empty sum.
            total.mul_((maximum - larger).exp_())
            total.addcmul_(block_total, (block_maximum - larger).exp_())
            maximum = larger
        maxima.append(maximum)
        totals.append(total)
    return torch.cat(maxima), torch.cat(totals)


def row_step(
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    passes, heads = choose("sinkhorn", scores.values[0]), _heads(scores)
    row_potentials = prototype_potentials.new_full((len(heads), scores.n_rows), float("-inf"))
    mass = torch.zeros_like(prototype_potentials) if with_mass else None
    start = 0
    for i, head in enumerate(heads):
        columns = slice(start, start + head.prototypes.shape[0])
        for block in head.blocks(n_valid):
            z = head.scores(block)
            block_row, block_mass = passes.row_step(
                z, temperature, prototype_potentials[columns], z.n_rows, with_mass
            )
            row_potentials[i, block] = block_row[0]
            if mass is not None and block_mass is not None:
                mass[columns] += block_mass
        start = columns.stop
    return row_potentials, mass


def forward(problem: ClusteringProblem) -> tuple[Tensor, Tensor]:
    kernel = choose("clustering_cross_entropy", problem.student.values[0])
    n_heads, weights = len(problem.student.values), problem.weights
    loss = weights.new_zeros(n_heads)
    lse = weights.new_empty(n_heads, weights.shape[0])
    for i in range(n_heads):
        for block, stored in _stored_blocks(problem, i):
            part, part_lse = kernel.forward(stored)
            loss[i] += part[0]
            lse[i, block] = part_lse[0]
    return loss, lse


def backward(problem: ClusteringProblem, grad_loss: Tensor, lse: Tensor) -> Scores:
    kernel = choose("clustering_cross_entropy", problem.student.values[0])
    dfeatures, dprototypes, dscales = [], [], []
    for i, (x, v, scale) in enumerate(_heads(problem.student)):
        dx = torch.empty_like(x)
        unscaled = torch.zeros(v.shape, dtype=scale.dtype, device=v.device)
        for block, stored in _stored_blocks(problem, i):
            block_lse = lse[i : i + 1, block].contiguous()
            (ds,) = kernel.backward(stored, grad_loss[i : i + 1], block_lse).values
            unscaled += ds.t() @ x[block]
            dx[block] = ds.mul_(scale) @ v
        dfeatures.append(dx)
        dscales.append(torch.linalg.vecdot(unscaled, v.to(scale.dtype)))
        dprototypes.append(unscaled.mul_(scale.unsqueeze(1)).to(v.dtype))
    return Scores(dfeatures, dprototypes, dscales)


def _stored_blocks(
    problem: ClusteringProblem, head: int
) -> Iterator[tuple[slice, ClusteringProblem]]:
    """Blocks of student rows of one head with the teacher rows they meet, all of them scored.

    Blocks are so small that both sides fit the budget.
    """
    student, teacher = _heads(problem.student)[head], _heads(problem.teacher)[head]
    potentials = problem.prototype_potentials.split(problem.teacher.columns)[head]
    n_rows, n_targets = problem.teacher_rows.shape
    for block in student.blocks(n_rows, 1 + n_targets):
        rows = problem.teacher_rows[block]
        met = rows.flatten()
        yield (
            block,
            problem._replace(
                student=student.scores(block),
                teacher=teacher.scores(met),
                prototype_potentials=potentials,
                row_potentials=problem.row_potentials[head][met].unsqueeze(0),
                teacher_rows=torch.arange(met.shape[0], device=met.device).view(rows.shape),
                weights=problem.weights[block],
            ),
        )
