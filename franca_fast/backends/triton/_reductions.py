"""Second stages of the two-stage reductions: partial results of units and splits to final ones.

Each sum is taken in a fixed order, so the same inputs give the same bits.
"""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from franca_fast.backends.triton._heads import LOWEST, head_units, merge_exponentials

_ROWS = 64
_COLUMNS = 512
_PARTS = 16


class RowSums:
    """Log-sum-exps of the rows in parts, one part for each unit of columns.

    Attributes:
        maximum: [units, rows] float32 workspace.
        total: [units, rows] float32 workspace.
    """

    def __init__(self, units: int, n_rows: int, like: Tensor) -> None:
        # At least one row, so that empty problems still have an address to pass.
        shape = (2, units, max(1, n_rows))
        self.maximum, self.total = like.new_empty(shape, dtype=torch.float32).unbind(0)


def combine_columns(maximum: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of the columns from those of the splits: [splits, sum K] -> two of [sum K]."""
    n_splits, n_columns = maximum.shape
    if n_splits == 1:
        return maximum[0], total[0]
    result = maximum.new_empty((2, n_columns))
    _combine_columns[(triton.cdiv(n_columns, _COLUMNS),)](
        maximum, total, result[0], result[1], n_splits, n_columns, COLUMNS=_COLUMNS, num_warps=4
    )
    return result[0], result[1]


def first_potentials(maximum: Tensor, total: Tensor) -> Tensor:
    """Prototype potentials [sum K] from the log-sum-exps of the splits, [splits, sum K]."""
    n_splits, n_columns = maximum.shape
    potential = maximum.new_empty(n_columns)
    _combine_potentials[(triton.cdiv(n_columns, _COLUMNS),)](
        maximum, total, potential, n_splits, n_columns, COLUMNS=_COLUMNS, num_warps=4
    )
    return potential


def update_potentials(potential: Tensor, mass: Tensor) -> None:
    """Takes the logarithm of the mass, [splits, sum K], off the prototype potentials."""
    n_splits, n_columns = mass.shape
    _combine_mass[(triton.cdiv(n_columns, _COLUMNS),)](
        mass, potential, n_splits, n_columns, COLUMNS=_COLUMNS, num_warps=4
    )


def combine_rows(
    parts: RowSums, columns: tuple[int, ...], width: int, n_rows: int, n_valid: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of the rows from those of the units.

    Returns:
        row: [H, N], the row potential -log-sum-exp; -inf for rows from n_valid on.
        maximum: [H, N] and
        total: [H, N], the same log-sum-exp in two parts, which keep the digits that their sum
            rounds away; undefined for rows from n_valid on.
    """
    n_heads = len(columns)
    result = parts.maximum.new_empty((3, n_heads, n_rows))
    if n_rows:
        _combine_rows[(triton.cdiv(n_rows, _ROWS), n_heads)](
            parts.maximum,
            parts.total,
            *result.unbind(0),
            columns,
            width,
            parts.maximum.stride(0),
            n_rows,
            n_valid,
            HEADS=n_heads,
            ROWS=_ROWS,
            PARTS=_PARTS,
            num_warps=4,
        )
    row, maximum, total = result.unbind(0)
    return row, maximum, total


def combine_losses(
    parts: RowSums,
    agreement: Tensor,
    columns: tuple[int, ...],
    width: int,
    weights: Tensor,
    n_targets: int,
) -> tuple[Tensor, Tensor]:
    """Loss [H] and log-sum-exp [H, M] from the parts of the student rows.

    Args:
        parts: Log-sum-exps of s/t, in parts.
        agreement: [units, M], sum over the unit's columns of q * s/t.
        columns: Columns of each head.
        width: Columns of a unit.
        weights: [M], weight of each student row.
        n_targets: P, the number of teacher rows that each student row meets.
    """
    n_heads, n_rows = len(columns), weights.shape[0]
    lse, row_loss = parts.maximum.new_empty((2, n_heads, n_rows)).unbind(0)
    if n_rows:
        _combine_losses[(triton.cdiv(n_rows, _ROWS), n_heads)](
            parts.maximum,
            parts.total,
            agreement,
            weights,
            lse,
            row_loss,
            columns,
            width,
            parts.maximum.stride(0),
            n_rows,
            n_targets,
            HEADS=n_heads,
            ROWS=_ROWS,
            PARTS=_PARTS,
            num_warps=4,
        )
    return row_loss.sum(dim=1), lse


@triton.jit
def _column_sums(maxima, totals, k, n_splits, n_columns, COLUMNS: tl.constexpr):
    """Maximum and total of the columns k over all splits."""
    inside = k < n_columns
    maximum = tl.full([COLUMNS], LOWEST, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    for _ in range(n_splits):
        m = tl.load(maxima + k, mask=inside, other=LOWEST)
        t = tl.load(totals + k, mask=inside, other=0.0)
        maxima += n_columns
        totals += n_columns
        larger = tl.maximum(maximum, m)
        total = total * tl.exp(maximum - larger) + t * tl.exp(m - larger)
        maximum = larger
    return maximum, total


@triton.jit(do_not_specialize=["n_splits"])
def _combine_columns(
    partial_maximum,  # [splits, sum K]
    partial_total,  # [splits, sum K]
    maximum_out,  # [sum K]
    total_out,  # [sum K]
    n_splits,
    n_columns,
    COLUMNS: tl.constexpr,
):
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    maximum, total = _column_sums(partial_maximum, partial_total, k, n_splits, n_columns, COLUMNS)
    tl.store(maximum_out + k, maximum, mask=k < n_columns)
    tl.store(total_out + k, total, mask=k < n_columns)


@triton.jit(do_not_specialize=["n_splits"])
def _combine_potentials(
    partial_maximum,  # [splits, sum K]
    partial_total,  # [splits, sum K]
    potential_out,  # [sum K]
    n_splits,
    n_columns,
    COLUMNS: tl.constexpr,
):
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    maximum, total = _column_sums(partial_maximum, partial_total, k, n_splits, n_columns, COLUMNS)
    total = tl.where(k < n_columns, total, 1.0)
    tl.store(potential_out + k, -(maximum + tl.log(total)), mask=k < n_columns)


@triton.jit(do_not_specialize=["n_splits"])
def _combine_mass(
    partial,  # [splits, sum K]
    potential,  # [sum K], updated
    n_splits,
    n_columns,
    COLUMNS: tl.constexpr,
):
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = k < n_columns
    mass = tl.zeros([COLUMNS], tl.float32)
    for _ in range(n_splits):
        mass += tl.load(partial + k, mask=inside, other=0.0)
        partial += n_columns
    a = tl.load(potential + k, mask=inside, other=0.0)
    tl.store(potential + k, a - tl.log(tl.where(mass > 0, mass, 1.0)), mask=inside)


@triton.jit(do_not_specialize=["row_stride", "n_rows", "n_valid"])
def _combine_rows(
    partial_maximum,  # [units, N]
    partial_total,  # [units, N]
    row_out,  # [H, N]
    maximum_out,  # [H, N]
    total_out,  # [H, N]
    columns,
    width,
    row_stride,
    n_rows,
    n_valid,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    head = tl.program_id(1)
    start, stop = head_units(head, columns, width, HEADS)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(start, stop, PARTS):
        unit = first + tl.arange(0, PARTS)
        inside = (unit < stop)[:, None] & (n < n_valid)[None, :]
        at = unit[:, None].to(tl.int64) * row_stride + n[None, :]  # [PARTS, ROWS]
        m = tl.load(partial_maximum + at, mask=inside, other=LOWEST)
        t = tl.load(partial_total + at, mask=inside, other=0.0)
        maximum, total = merge_exponentials(m, t, maximum, total, 0)
    at = head.to(tl.int64) * n_rows + n
    valid = n < n_valid
    # log(1) for padding rows, whose total is 0 and whose potential is set here.
    potential = -(maximum + tl.log(tl.where(valid, total, 1.0)))
    tl.store(row_out + at, tl.where(valid, potential, float("-inf")), mask=n < n_rows)
    tl.store(maximum_out + at, maximum, mask=n < n_rows)
    tl.store(total_out + at, total, mask=n < n_rows)


@triton.jit(do_not_specialize=["row_stride", "n_rows", "n_targets"])
def _combine_losses(
    partial_maximum,  # [units, M]
    partial_total,  # [units, M]
    partial_agreement,  # [units, M]
    weights,  # [M]
    lse_out,  # [H, M]
    loss_out,  # [H, M]
    columns,
    width,
    row_stride,
    n_rows,
    n_targets,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    head = tl.program_id(1)
    start, stop = head_units(head, columns, width, HEADS)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = m < n_rows
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    agreement = tl.zeros([ROWS], tl.float32)
    for first in range(start, stop, PARTS):
        unit = first + tl.arange(0, PARTS)
        inside = (unit < stop)[:, None] & valid[None, :]
        at = unit[:, None].to(tl.int64) * row_stride + m[None, :]  # [PARTS, ROWS]
        maxima = tl.load(partial_maximum + at, mask=inside, other=LOWEST)
        totals = tl.load(partial_total + at, mask=inside, other=0.0)
        maximum, total = merge_exponentials(maxima, totals, maximum, total, 0)
        agreement += tl.sum(tl.load(partial_agreement + at, mask=inside, other=0.0), 0)
    lse = tl.where(valid, maximum + tl.log(tl.where(valid, total, 1.0)), 0.0)
    loss = tl.load(weights + m, mask=valid, other=0.0) * (n_targets * lse - agreement)
    at = head.to(tl.int64) * n_rows + m
    tl.store(lse_out + at, lse, mask=valid)
    tl.store(loss_out + at, loss, mask=valid)
