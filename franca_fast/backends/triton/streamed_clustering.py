"""The clustering operators on scores that are never stored, as Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from franca_fast.backends._sinkhorn_iteration import balance
from franca_fast.backends._streamed_backward import backward as chunked_backward
from franca_fast.backends._streamed_backward import padded
from franca_fast.backends.contracts import ClusteringProblem, Scores
from franca_fast.backends.triton import _streamed_kernels as kernels
from franca_fast.backends.triton._heads import Heads, count_units, on_device_of, pack, unit_width
from franca_fast.backends.triton._reductions import (
    RowSums,
    combine_columns,
    combine_losses,
    combine_rows,
)
from franca_fast.backends.triton.sinkhorn import split_rows_of

_PROGRAMS = 512  # a program here is several times the work of one that reads stored logits


class _Tile(NamedTuple):
    """Rows, columns and depth of the matrix products of a program."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """The kernels' keyword arguments."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


class _Packed(NamedTuple):
    features: Heads
    prototypes: Heads
    scales: tuple[Tensor, ...]

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns of each head's scores: its prototypes."""
        return tuple(v.shape[0] for v in self.prototypes.matrices)

    def arguments(self) -> tuple[Any, ...]:
        """The side as the kernels take it."""
        return (*self.features, *self.prototypes[:2], self.scales)


def _pack(scores: Scores) -> _Packed:
    scales = tuple(s.contiguous() for s in scores.scales)
    return _Packed(pack(scores.values), pack(scores.prototypes), scales)


# The tiles of 16-bit features. One product leaves registers for a large tile; those with more tiles
# or row vectors at a time get a smaller one, long where sums are taken (see _streamed_kernels).
_ONE_PRODUCT = _Tile(128, 128, 64, 8, 3)
_ALONG_ROWS = _Tile(128, 64, 64, 8, 3)
_ALONG_COLUMNS = _Tile(64, 128, 64, 8, 3)
# Exact float32 products run without tensor cores.
_FLOAT32 = _Tile(64, 32, 32, 4, 2)


def _tile(features: Tensor, n_rows: int, preferred: _Tile) -> _Tile:
    if features.dtype == torch.float32:
        return _FLOAT32
    return preferred if n_rows > _ALONG_COLUMNS.rows else _ALONG_COLUMNS


def potentials(
    scores: Scores, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    return balance(column_logsumexp, row_step, scores, temperature, n_iterations, n_valid)


def column_logsumexp(scores: Scores, temperature: float, n_valid: int) -> tuple[Tensor, Tensor]:
    side = _pack(scores)
    columns, like = side.columns, scores.scales[0]
    n_columns = sum(columns)
    if n_valid == 0:
        maximum = like.new_full((n_columns,), float("-inf"))
        return maximum, torch.zeros_like(maximum)
    tile = _tile(scores.values[0], n_valid, _ONE_PRODUCT)
    units, n_splits, split_rows = split_rows_of(columns, n_valid, tile.columns)
    partial = like.new_empty((2, n_splits, n_columns))
    with on_device_of(like):
        kernels.column_logsumexp_kernel[(units, n_splits)](
            columns,
            *side.arguments(),
            partial[0],
            partial[1],
            n_columns,
            n_valid,
            split_rows,
            1.0 / temperature,
            HEADS=len(columns),
            **tile.options(),
        )
        return combine_columns(partial[0], partial[1])


def row_step(
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    side, potential = _pack(scores), prototype_potentials.contiguous()
    with on_device_of(potential):
        row, maximum, total = _row_logsumexp(side, temperature, potential, n_valid)
        if not with_mass:
            return row, None
        if n_valid == 0:
            return row, torch.zeros_like(potential)
        columns, tile = side.columns, _tile(scores.values[0], n_valid, _ALONG_COLUMNS)
        units, n_splits, split_rows = split_rows_of(columns, n_valid, tile.columns)
        partial = potential.new_empty((n_splits, potential.shape[0]))
        kernels.mass_kernel[(units, n_splits)](
            columns,
            *side.arguments(),
            potential,
            maximum,
            total,
            partial,
            potential.shape[0],
            row.shape[1],
            n_valid,
            split_rows,
            1.0 / temperature,
            HEADS=len(columns),
            **tile.options(),
        )
        return row, partial[0] if n_splits == 1 else partial.sum(dim=0)


def _row_logsumexp(
    side: _Packed, temperature: float, potential: Tensor, n_valid: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Row potential, and maximum and sum of exponentials of z/T + a in each row; all [H, N]."""
    features, columns = side.features.matrices, side.columns
    tile = _tile(features[0], n_valid, _ONE_PRODUCT)
    row_blocks = triton.cdiv(n_valid, tile.rows)
    width = unit_width(columns, row_blocks, tile.columns, _PROGRAMS)
    units = count_units(columns, width)
    parts = RowSums(units, n_valid, potential)
    if n_valid:
        kernels.row_partials_kernel[(row_blocks, units)](
            columns,
            *side.arguments(),
            potential,
            parts.maximum,
            parts.total,
            width,
            parts.maximum.stride(0),
            n_valid,
            1.0 / temperature,
            HEADS=len(columns),
            **tile.options(),
        )
    return combine_rows(parts, columns, width, features[0].shape[0], n_valid)


def forward(problem: ClusteringProblem) -> tuple[Tensor, Tensor]:
    students, teachers = _pack(problem.student), _pack(problem.teacher)
    n_rows, n_targets = problem.teacher_rows.shape
    weights = problem.weights
    columns, tile = students.columns, _tile(problem.student.values[0], n_rows, _ALONG_ROWS)
    row_blocks = triton.cdiv(n_rows, tile.rows)
    width = unit_width(columns, row_blocks, tile.columns, _PROGRAMS)
    units = count_units(columns, width)
    parts = RowSums(units, n_rows, weights)
    agreement = torch.empty_like(parts.maximum)
    with on_device_of(weights):
        if n_rows:
            kernels.forward_kernel[(row_blocks, units)](
                columns,
                *students.arguments(),
                *teachers.arguments(),
                problem.prototype_potentials.contiguous(),
                problem.row_potentials.contiguous(),
                problem.teacher_rows.contiguous(),
                parts.maximum,
                parts.total,
                agreement,
                width,
                parts.maximum.stride(0),
                n_rows,
                problem.row_potentials.shape[1],
                n_targets,
                1.0 / problem.student_temperature,
                1.0 / problem.teacher_temperature,
                HEADS=len(columns),
                **tile.options(),
            )
        return combine_losses(parts, agreement, columns, width, weights.contiguous(), n_targets)


def backward(problem: ClusteringProblem, grad_loss: Tensor, lse: Tensor) -> Scores:
    packed = problem._replace(
        student=_contiguous(problem.student),
        teacher=_contiguous(problem.teacher),
        row_potentials=problem.row_potentials.contiguous(),
        teacher_rows=problem.teacher_rows.contiguous(),
        weights=problem.weights.contiguous(),
    )
    tile = _tile(problem.student.values[0], problem.teacher_rows.shape[0], _ALONG_COLUMNS)
    potentials = problem.prototype_potentials.contiguous().split(problem.student.columns)
    kernel = _GradientKernel(packed, potentials, lse.contiguous(), grad_loss.float(), tile)
    with on_device_of(problem.weights):
        return chunked_backward(packed.student, tile.columns, kernel)


def _contiguous(scores: Scores) -> Scores:
    """The scores with adjacent columns."""
    packed = _pack(scores)
    return Scores(packed.features.matrices, packed.prototypes.matrices, packed.scales)


class _GradientKernel(NamedTuple):
    """Gradient of the products <x, v> of some prototypes of a head."""

    problem: ClusteringProblem
    potentials: Sequence[Tensor]  # of the prototypes of each head
    lse: Tensor
    grad_loss: Tensor
    tile: _Tile

    def __call__(self, head: int, columns: slice, dscale: Tensor) -> Tensor:
        problem = self.problem
        (x, v, scale), (x_teacher, v_teacher, scale_teacher) = (
            (side.values[head], side.prototypes[head][columns], side.scales[head][columns])
            for side in (problem.student, problem.teacher)
        )
        (n_rows, n_targets), width = problem.teacher_rows.shape, v.shape[0]
        row_blocks = triton.cdiv(n_rows, self.tile.rows)
        # ds * scale: the gradient of the products.
        product_grad = x.new_empty((width, padded(n_rows)))[:, :n_rows]
        scale_grad = dscale.new_empty((row_blocks, width))
        kernels.gradient_kernel[(row_blocks, triton.cdiv(width, self.tile.columns))](
            self.grad_loss[head : head + 1],
            x,
            x.stride(0),
            x.shape[1],
            v,
            v.stride(0),
            scale,
            x_teacher,
            x_teacher.stride(0),
            x_teacher.shape[1],
            v_teacher,
            v_teacher.stride(0),
            scale_teacher,
            self.potentials[head][columns],
            problem.row_potentials[head],
            self.lse[head],
            problem.teacher_rows,
            problem.weights,
            product_grad,
            scale_grad,
            n_rows,
            width,
            problem.row_potentials.shape[1],
            n_targets,
            1.0 / problem.student_temperature,
            1.0 / problem.teacher_temperature,
            product_grad.stride(0),
            **self.tile.options(),
        )
        torch.sum(scale_grad, dim=0, out=dscale)
        return product_grad.t()
