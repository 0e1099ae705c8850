"""Clustering on scores that are never stored: a block of rows at a time is scored and consumed.

Each block goes through the same kernels as stored logits, whichever backend runs them, so this adds
only the recomputation. Extra memory is one block of scores for the student and one for the teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from franca_fast.backends.registry import choose

# Scores of one block: 32 MiB in float32.
_BLOCK_SCORES = 1 << 23

Side = tuple[list[Tensor], list[Tensor], list[Tensor]]


class _Head(NamedTuple):
    """One head of a side: features [N, C], prototypes [K, C], scales [K]."""

    features: Tensor
    prototypes: Tensor
    scales: Tensor

    def scores(self, rows: slice | Tensor) -> Tensor:
        """Scores of some rows, [rows, K]."""
        x = self.features[rows]
        scorer = choose("prototype_scores", x)
        return scorer.forward([x], [self.prototypes], [self.scales])[0]

    def blocks(self, n_rows: int, blocks_at_once: int = 1) -> Iterator[slice]:
        step = max(1, _BLOCK_SCORES // (self.prototypes.shape[0] * blocks_at_once))
        return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _heads(side: Side) -> list[_Head]:
    return [_Head(*factors) for factors in zip(*side, strict=True)]


def _potential_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def column_logsumexp(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor],
    temperature: float,
    n_valid: int,
) -> tuple[Tensor, Tensor]:
    """Maximum of z/T over the valid rows and sum of exp(z/T - maximum), both [sum K]."""
    passes = choose("sinkhorn", features[0])
    dtype = _potential_dtype(features[0])
    maxima, totals = [], []
    for head in _heads((features, prototypes, scales)):
        maximum = head.scales.new_full(head.scales.shape, float("-inf"), dtype=dtype)
        total = torch.zeros_like(maximum)
        for block in head.blocks(n_valid):
            z = head.scores(block)
            block_maximum, block_total = passes.column_logsumexp([z], temperature, z.shape[0])
            larger = torch.maximum(maximum, block_maximum)
            # exp(-inf - larger) is 0: the first block replaces the empty sum.
            total.mul_((maximum - larger).exp_())
            total.addcmul_(block_total, (block_maximum - larger).exp_())
            maximum = larger
        maxima.append(maximum)
        totals.append(total)
    return torch.cat(maxima), torch.cat(totals)


def row_step(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor],
    temperature: float,
    prototype: Tensor,
    n_valid: int,
    with_mass: bool,
) -> tuple[Tensor, Tensor | None]:
    """Row potentials [H, N] and, on request, the mass of each prototype [sum K]."""
    passes = choose("sinkhorn", features[0])
    heads = _heads((features, prototypes, scales))
    row = prototype.new_full((len(heads), features[0].shape[0]), float("-inf"))
    mass = torch.zeros_like(prototype) if with_mass else None
    start = 0
    for i, head in enumerate(heads):
        columns = slice(start, start + head.prototypes.shape[0])
        for block in head.blocks(n_valid):
            z = head.scores(block)
            block_row, block_mass = passes.row_step(
                [z], temperature, prototype[columns], z.shape[0], with_mass
            )
            row[i, block] = block_row[0]
            if mass is not None:
                mass[columns] += block_mass
        start = columns.stop
    return row, mass


def forward(
    student: Side,
    teacher: Side,
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Loss [H] and log-sum-exp of the student rows [H, M]."""
    loss_kernel = choose("clustering_cross_entropy", student[0][0])
    n_rows = teacher_rows.shape[0]
    temperatures = (student_temperature, teacher_temperature)
    loss = weights.new_zeros(len(student[0]))
    lse = weights.new_empty(len(student[0]), n_rows)
    for i, meeting in enumerate(_meetings(student, teacher, prototype, row)):
        for block in meeting.blocks(n_rows, teacher_rows.shape[1]):
            own, other, arguments = meeting.at(block, teacher_rows)
            part, part_lse = loss_kernel.forward(
                [own], [other], *arguments[:2], *temperatures, arguments[2], weights[block]
            )
            loss[i] += part[0]
            lse[i, block] = part_lse[0]
    return loss, lse


def backward(
    grad_loss: Tensor,
    student: Side,
    teacher: Side,
    prototype: Tensor,
    row: Tensor,
    lse: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of the student's features, prototypes and scales."""
    loss_kernel = choose("clustering_cross_entropy", student[0][0])
    n_rows = teacher_rows.shape[0]
    temperatures = (student_temperature, teacher_temperature)
    dfeatures, dprototypes, dscales = [], [], []
    for i, meeting in enumerate(_meetings(student, teacher, prototype, row)):
        x, v, scale = meeting.student
        dx = torch.empty_like(x)
        unscaled = torch.zeros(v.shape, dtype=scale.dtype, device=v.device)
        for block in meeting.blocks(n_rows, teacher_rows.shape[1]):
            own, other, arguments = meeting.at(block, teacher_rows)
            (ds,) = loss_kernel.backward(
                grad_loss[i : i + 1],
                [own],
                [other],
                *arguments[:2],
                lse[i : i + 1, block].contiguous(),
                *temperatures,
                arguments[2],
                weights[block],
            )
            unscaled += ds.t() @ x[block]
            dx[block] = ds.mul_(scale) @ v
        dfeatures.append(dx)
        dscales.append(torch.linalg.vecdot(unscaled, v.to(scale.dtype)))
        dprototypes.append(unscaled.mul_(scale.unsqueeze(1)).to(v.dtype))
    return dfeatures, dprototypes, dscales


class _Meeting(NamedTuple):
    """One head of student and teacher, with the teacher's potentials a [K] and b [N]."""

    student: _Head
    teacher: _Head
    prototype: Tensor
    row: Tensor

    def blocks(self, n_rows: int, n_targets: int) -> Iterator[slice]:
        """Blocks of student rows, so small that they and their teacher rows fit the budget."""
        return self.student.blocks(n_rows, 1 + n_targets)

    def at(
        self, block: slice, teacher_rows: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Student scores, scores of the teacher rows they meet, and (a, b, rows) among those."""
        rows = teacher_rows[block]
        met = rows.flatten()
        local = torch.arange(met.shape[0], device=met.device).view(rows.shape)
        arguments = (self.prototype, self.row[met].unsqueeze(0), local)
        return self.student.scores(block), self.teacher.scores(met), arguments


def _meetings(student: Side, teacher: Side, prototype: Tensor, row: Tensor) -> Iterator[_Meeting]:
    students, teachers = _heads(student), _heads(teacher)
    potentials = prototype.split([head.prototypes.shape[0] for head in teachers])
    return (_Meeting(*parts) for parts in zip(students, teachers, potentials, row, strict=True))
