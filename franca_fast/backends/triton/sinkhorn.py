"""Sinkhorn-Knopp half-steps as Triton kernels, one launch for all heads.

A row of 131072 scores does not fit a Triton program, so a row step that also gives the mass reads
them twice. With few rows a program holds columns whole, and `potentials` reads the scores once an
iteration.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from franca_fast.backends.contracts import Scores
from franca_fast.backends.triton import _sinkhorn_kernels as kernels
from franca_fast.backends.triton._heads import Heads, count_units, on_device_of, pack, unit_width
from franca_fast.backends.triton._reductions import (
    RowSums,
    combine_columns,
    combine_rows,
    first_potentials,
    update_potentials,
)

# Along columns (one result for each column): a thread owns whole columns, so that nothing is
# exchanged between threads. Along rows: more columns than rows, so that few rows are exchanged.
_COLUMN_TILE, _COLUMN_WARPS = (8, 1024), 4
_ROW_TILE, _ROW_WARPS = (4, 2048), 8

# Enough programs to fill a large GPU several times over.
_PROGRAMS = 2048
_COLUMN_PROGRAMS = 1024
_FEWEST_ROWS_OF_A_SPLIT = 64
# Rows that one tile holds, its elements, and the columns of a program.
_FEW_ROWS, _FEW_ROWS_TILE, _FEW_ROWS_WIDTH = 64, 8192, 1024


def column_logsumexp(scores: Scores, temperature: float, n_valid: int) -> tuple[Tensor, Tensor]:
    heads = pack(scores.values)
    if n_valid == 0:
        like = scores.values[0].new_empty(sum(heads.columns), dtype=torch.float32)
        return like.fill_(float("-inf")), torch.zeros_like(like)
    with on_device_of(scores.values[0]):
        return combine_columns(*_column_partials(heads, temperature, n_valid))


def row_step(
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    heads, potential = pack(scores.values), prototype_potentials.contiguous()
    with on_device_of(potential):
        row, maximum, total = _row_logsumexp(heads, temperature, potential, n_valid)
        if not with_mass:
            return row, None
        if n_valid == 0:
            return row, torch.zeros_like(potential)
        partial = _mass_partials(heads, temperature, potential, maximum, total, n_valid)
        return row, partial[0] if partial.shape[0] == 1 else partial.sum(dim=0)


def potentials(
    scores: Scores, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    heads = pack(scores.values)
    with on_device_of(scores.values[0]):
        if n_valid <= _FEW_ROWS:
            return _potentials_of_few_rows(heads, temperature, n_iterations, n_valid)
        potential = first_potentials(*_column_partials(heads, temperature, n_valid))
        for _ in range(n_iterations - 1):
            _, maximum, total = _row_logsumexp(heads, temperature, potential, n_valid)
            mass = _mass_partials(heads, temperature, potential, maximum, total, n_valid)
            update_potentials(potential, mass)
        return potential, _row_logsumexp(heads, temperature, potential, n_valid)[0]


def _potentials_of_few_rows(
    heads: Heads, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    n_rows, like = heads.matrices[0].shape[0], heads.matrices[0]
    potential = like.new_zeros(sum(heads.columns), dtype=torch.float32)
    row = potential.new_full((len(heads.columns), n_rows), float("-inf"))
    if n_valid == 0:
        return potential, row
    rows = triton.next_power_of_2(n_valid)
    columns = _FEW_ROWS_TILE // rows
    width = max(columns, _FEW_ROWS_WIDTH)
    units = count_units(heads.columns, width)
    parts = RowSums(units, n_valid, potential)
    for iteration in range(n_iterations):
        kernels.iteration_kernel[(units,)](
            *heads,
            row,
            potential,
            parts.maximum,
            parts.total,
            width,
            parts.maximum.stride(0),
            n_rows,
            n_valid,
            1.0 / temperature,
            HEADS=len(heads.columns),
            FIRST=iteration == 0,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=_ROW_WARPS,
        )
        row, _, _ = combine_rows(parts, heads.columns, width, n_rows, n_valid)
    return potential, row


def _column_partials(heads: Heads, temperature: float, n_valid: int) -> tuple[Tensor, Tensor]:
    """Maximum and sum of exponentials of z/T in each column, both [splits, sum K]."""
    n_columns, like = sum(heads.columns), heads.matrices[0]
    units, n_splits, split_rows = split_rows_of(heads.columns, n_valid, _COLUMN_TILE[1])
    maximum, total = like.new_empty((2, n_splits, n_columns), dtype=torch.float32).unbind(0)
    kernels.column_logsumexp_kernel[(units, n_splits)](
        *heads,
        maximum,
        total,
        n_columns,
        n_valid,
        split_rows,
        1.0 / temperature,
        HEADS=len(heads.columns),
        ROWS=_COLUMN_TILE[0],
        COLUMNS=_COLUMN_TILE[1],
        num_warps=_COLUMN_WARPS,
    )
    return maximum, total


def _mass_partials(
    heads: Heads,
    temperature: float,
    potential: Tensor,
    row_maximum: Tensor,
    row_total: Tensor,
    n_valid: int,
) -> Tensor:
    """Masses of the prototypes in parts to be summed, [splits, sum K]."""
    units, n_splits, split_rows = split_rows_of(heads.columns, n_valid, _COLUMN_TILE[1])
    partial = potential.new_empty((n_splits, potential.shape[0]))
    kernels.mass_kernel[(units, n_splits)](
        *heads,
        potential,
        row_maximum,
        row_total,
        partial,
        potential.shape[0],
        row_maximum.shape[1],
        n_valid,
        split_rows,
        1.0 / temperature,
        HEADS=len(heads.columns),
        ROWS=_COLUMN_TILE[0],
        COLUMNS=_COLUMN_TILE[1],
        num_warps=_COLUMN_WARPS,
    )
    return partial


def assignments(
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int
) -> list[Tensor]:
    heads, potential = pack(scores.values), prototype_potentials.contiguous()
    out = [potential.new_empty(z.shape) for z in scores.values]
    n_rows = scores.n_rows
    if n_rows == 0:
        return out
    rows, columns = _ROW_TILE
    with on_device_of(potential):
        _, maximum, total = _row_logsumexp(heads, temperature, potential, n_valid)
        kernels.assignments_kernel[
            (triton.cdiv(n_rows, rows), count_units(heads.columns, columns))
        ](
            *heads,
            potential,
            maximum,
            total,
            tuple(out),
            n_rows,
            n_valid,
            1.0 / temperature,
            HEADS=len(out),
            ROWS=rows,
            COLUMNS=columns,
            num_warps=_ROW_WARPS,
        )
    return out


def split_rows_of(columns: tuple[int, ...], n_rows: int, width: int) -> tuple[int, int, int]:
    """Cuts the rows of a pass along columns so that there are enough programs.

    Returns:
        Units of `width` columns, splits (none of them empty), and rows of a split.
    """
    units = count_units(columns, width)
    split_rows = max(_FEWEST_ROWS_OF_A_SPLIT, triton.cdiv(n_rows * units, _COLUMN_PROGRAMS))
    return units, triton.cdiv(n_rows, split_rows), split_rows


def _row_logsumexp(
    heads: Heads, temperature: float, potential: Tensor, n_valid: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Row potential, and maximum and sum of exponentials of z/T + a in each row; all [H, N]."""
    rows, columns = _ROW_TILE
    row_blocks = triton.cdiv(n_valid, rows)
    width = unit_width(heads.columns, row_blocks, columns, _PROGRAMS)
    units = count_units(heads.columns, width)
    parts = RowSums(units, n_valid, potential)
    if n_valid:
        kernels.row_partials_kernel[(row_blocks, units)](
            *heads,
            potential,
            parts.maximum,
            parts.total,
            width,
            parts.maximum.stride(0),
            n_valid,
            1.0 / temperature,
            HEADS=len(heads.columns),
            ROWS=rows,
            COLUMNS=columns,
            num_warps=_ROW_WARPS,
        )
    return combine_rows(parts, heads.columns, width, heads.matrices[0].shape[0], n_valid)
