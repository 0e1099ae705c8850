"""Sinkhorn-Knopp half-steps as Triton kernels, one launch for all heads.

The functions are those of `backends.torch.sinkhorn`, which says what they compute. A row of 131072
logits does not fit a Triton program, so a row step that also gives the mass reads the logits twice;
at few rows the second read comes from the L2 cache.
"""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._heads import (
    LOWEST,
    Heads,
    add_exponentials,
    count_units,
    locate,
    on_device_of,
    pack,
    pick,
    unit_width,
)
from ._reductions import RowSums, combine_columns, combine_rows

# Along columns (one result for each column): a thread owns whole columns, so that nothing is
# exchanged between threads. Along rows: more columns than rows, so that few rows are exchanged.
_COLUMN_TILE, _COLUMN_WARPS = (8, 1024), 4
_ROW_TILE, _ROW_WARPS = (4, 2048), 8

# Enough programs to fill a large GPU several times over.
_PROGRAMS = 2048
_COLUMN_PROGRAMS = 1024
_FEWEST_ROWS_OF_A_SPLIT = 64


def column_logsumexp(
    logits: list[Tensor], temperature: float, n_valid: int
) -> tuple[Tensor, Tensor]:
    """Maximum of z/T over the valid rows and sum of exp(z/T - maximum), both [sum K]."""
    heads = pack(logits)
    n_columns, like = sum(heads.columns), logits[0]
    if n_valid == 0:
        maximum = like.new_full((n_columns,), float("-inf"), dtype=torch.float32)
        return maximum, torch.zeros_like(maximum)
    units, n_splits, split_rows = split_rows_of(heads.columns, n_valid, _COLUMN_TILE[1])
    partial = like.new_empty((2, n_splits, n_columns), dtype=torch.float32)
    with on_device_of(like):
        _column_logsumexp[(units, n_splits)](
            *heads,
            partial[0],
            partial[1],
            n_columns,
            n_valid,
            split_rows,
            1.0 / temperature,
            HEADS=len(logits),
            ROWS=_COLUMN_TILE[0],
            COLUMNS=_COLUMN_TILE[1],
            num_warps=_COLUMN_WARPS,
        )
        return combine_columns(partial[0], partial[1])


def row_step(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    """Row potentials [H, N] for given prototype potentials and, on request, the mass [sum K]."""
    heads, prototype = pack(logits), prototype.contiguous()
    with on_device_of(prototype):
        row, maximum, total = _row_logsumexp(heads, temperature, prototype, n_valid)
        if not with_mass:
            return row, None
        if n_valid == 0:
            return row, torch.zeros_like(prototype)
        units, n_splits, split_rows = split_rows_of(heads.columns, n_valid, _COLUMN_TILE[1])
        partial = prototype.new_empty((n_splits, prototype.shape[0]))
        _mass[(units, n_splits)](
            *heads,
            prototype,
            maximum,
            total,
            partial,
            prototype.shape[0],
            row.shape[1],
            n_valid,
            split_rows,
            1.0 / temperature,
            HEADS=len(logits),
            ROWS=_COLUMN_TILE[0],
            COLUMNS=_COLUMN_TILE[1],
            num_warps=_COLUMN_WARPS,
        )
        return row, partial[0] if n_splits == 1 else partial.sum(dim=0)


def assignments(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int
) -> list[Tensor]:
    """Softmax over k of z/T + a[k], [N, K] for each head; zero for rows from n_valid on."""
    heads, prototype = pack(logits), prototype.contiguous()
    out = [prototype.new_empty(z.shape) for z in logits]
    n_rows = logits[0].shape[0]
    if n_rows == 0:
        return out
    rows, columns = _ROW_TILE
    with on_device_of(prototype):
        _, maximum, total = _row_logsumexp(heads, temperature, prototype, n_valid)
        _assignments[(triton.cdiv(n_rows, rows), count_units(heads.columns, columns))](
            *heads,
            prototype,
            maximum,
            total,
            tuple(out),
            n_rows,
            n_valid,
            1.0 / temperature,
            HEADS=len(logits),
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
    heads: Heads, temperature: float, prototype: Tensor, n_valid: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Row potential, and maximum and sum of exponentials of z/T + a in each row; all [H, N]."""
    rows, columns = _ROW_TILE
    row_blocks = triton.cdiv(n_valid, rows)
    width = unit_width(heads.columns, row_blocks, columns, _PROGRAMS)
    units = count_units(heads.columns, width)
    parts = RowSums(units, n_valid, prototype)
    if n_valid:
        _row_partials[(row_blocks, units)](
            *heads,
            prototype,
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


@triton.jit(do_not_specialize=["n_all", "n_valid", "split_rows", "inverse_temperature"])
def _column_logsumexp(
    logits,  # for each head [N, K]
    strides,
    columns,
    maximum_out,  # [splits, sum K]
    total_out,  # [splits, sum K]
    n_all,  # sum K
    n_valid,
    split_rows,
    inverse_temperature,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head, column, head_column, _, n_columns = locate(tl.program_id(0), columns, COLUMNS, HEADS)
    split = tl.program_id(1)
    k = column + tl.arange(0, COLUMNS)
    z_columns = pick(logits, head, HEADS) + k
    stride = pick(strides, head, HEADS)
    stop = tl.minimum((split + 1) * split_rows, n_valid)
    maximum = tl.full([COLUMNS], LOWEST, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(split * split_rows, stop, ROWS):
        n = start + tl.arange(0, ROWS)
        inside = (n < stop)[:, None] & (k < n_columns)[None, :]
        z_at = z_columns[None, :] + n.to(tl.int64)[:, None] * stride
        z = tl.load(z_at, mask=inside, other=float("-inf"))  # [ROWS, COLUMNS]
        x = z.to(tl.float32) * inverse_temperature
        maximum, total = add_exponentials(x, maximum, total, 0)
    at = split.to(tl.int64) * n_all + head_column + k
    tl.store(maximum_out + at, maximum, mask=k < n_columns)
    tl.store(total_out + at, total, mask=k < n_columns)


@triton.jit(do_not_specialize=["part_stride", "n_valid", "inverse_temperature"])
def _row_partials(
    logits,  # for each head [N, K]
    strides,
    columns,
    prototype,  # [sum K]
    maximum_out,  # [units, N]
    total_out,  # [units, N]
    width,
    part_stride,
    n_valid,
    inverse_temperature,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    unit = tl.program_id(1)
    head, column, head_column, _, n_columns = locate(unit, columns, width, HEADS)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    z_rows = pick(logits, head, HEADS) + n.to(tl.int64) * pick(strides, head, HEADS)
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    # One sum for each lane; adding the lanes up waits until the end.
    totals = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(column, tl.minimum(column + width, n_columns), COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        inside = (n < n_valid)[:, None] & (k < n_columns)[None, :]
        z = tl.load(z_rows[:, None] + k[None, :], mask=inside, other=float("-inf"))
        a = tl.load(prototype + head_column + k, mask=k < n_columns, other=0.0)
        x = tl.fma(z.to(tl.float32), inverse_temperature, a[None, :])  # [ROWS, COLUMNS]
        larger = tl.maximum(maximum, tl.max(x, 1))
        totals = totals * tl.exp(maximum - larger)[:, None] + tl.exp(x - larger[:, None])
        maximum = larger
    at = unit.to(tl.int64) * part_stride + n
    tl.store(maximum_out + at, maximum, mask=n < n_valid)
    tl.store(total_out + at, tl.sum(totals, 1), mask=n < n_valid)


@triton.jit(do_not_specialize=["n_all", "n_rows", "n_valid", "split_rows", "inverse_temperature"])
def _mass(
    logits,  # for each head [N, K]
    strides,
    columns,
    prototype,  # [sum K]
    row_maximum,  # [H, N]
    row_total,  # [H, N]
    mass_out,  # [splits, sum K]
    n_all,  # sum K
    n_rows,
    n_valid,
    split_rows,
    inverse_temperature,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head, column, head_column, _, n_columns = locate(tl.program_id(0), columns, COLUMNS, HEADS)
    split = tl.program_id(1)
    k = column + tl.arange(0, COLUMNS)
    z_columns = pick(logits, head, HEADS) + k
    stride = pick(strides, head, HEADS)
    a = tl.load(prototype + head_column + k, mask=k < n_columns, other=0.0)
    stop = tl.minimum((split + 1) * split_rows, n_valid)
    mass = tl.zeros([COLUMNS], tl.float32)
    for start in range(split * split_rows, stop, ROWS):
        n = start + tl.arange(0, ROWS)
        inside = (n < stop)[:, None] & (k < n_columns)[None, :]
        z_at = z_columns[None, :] + n.to(tl.int64)[:, None] * stride
        z = tl.load(z_at, mask=inside, other=float("-inf"))
        x = tl.fma(z.to(tl.float32), inverse_temperature, a[None, :])  # [ROWS, COLUMNS]
        at = head.to(tl.int64) * n_rows + n
        maximum = tl.load(row_maximum + at, mask=n < stop, other=0.0)
        total = tl.load(row_total + at, mask=n < stop, other=1.0)
        mass += tl.sum(tl.exp(x - maximum[:, None]) * (1.0 / total)[:, None], 0)
    at = split.to(tl.int64) * n_all + head_column + k
    tl.store(mass_out + at, mass, mask=k < n_columns)


@triton.jit(do_not_specialize=["n_rows", "n_valid", "inverse_temperature"])
def _assignments(
    logits,  # for each head [N, K]
    strides,
    columns,
    prototype,  # [sum K]
    row_maximum,  # [H, N]
    row_total,  # [H, N]
    out,  # for each head [N, K]
    n_rows,
    n_valid,
    inverse_temperature,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head, column, head_column, _, n_columns = locate(tl.program_id(1), columns, COLUMNS, HEADS)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = column + tl.arange(0, COLUMNS)
    row = n.to(tl.int64)
    inside = (n < n_rows)[:, None] & (k < n_columns)[None, :]
    valid = (n < n_valid)[:, None] & inside
    z_rows = pick(logits, head, HEADS) + row * pick(strides, head, HEADS)
    z = tl.load(z_rows[:, None] + k[None, :], mask=valid, other=float("-inf"))
    a = tl.load(prototype + head_column + k, mask=k < n_columns, other=0.0)
    x = tl.fma(z.to(tl.float32), inverse_temperature, a[None, :])  # [ROWS, COLUMNS]
    at = head.to(tl.int64) * n_rows + n
    maximum = tl.load(row_maximum + at, mask=n < n_valid, other=0.0)
    total = tl.load(row_total + at, mask=n < n_valid, other=1.0)
    q = tl.exp(x - maximum[:, None]) / total[:, None]
    q_rows = pick(out, head, HEADS) + row * n_columns
    tl.store(q_rows[:, None] + k[None, :], q, mask=inside)
