"""Kernels of the Sinkhorn-Knopp half-steps on stored logits."""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from franca_fast.backends.triton._heads import LOWEST, add_exponentials, locate, pick


@triton.jit(do_not_specialize=["n_all", "n_valid", "split_rows", "inverse_temperature"])
def column_logsumexp_kernel(
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
def row_partials_kernel(
    logits,  # for each head [N, K]
    strides,
    columns,
    potential,  # [sum K]
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
        a = tl.load(potential + head_column + k, mask=k < n_columns, other=0.0)
        x = tl.fma(z.to(tl.float32), inverse_temperature, a[None, :])  # [ROWS, COLUMNS]
        larger = tl.maximum(maximum, tl.max(x, 1))
        totals = totals * tl.exp(maximum - larger)[:, None] + tl.exp(x - larger[:, None])
        maximum = larger
    at = unit.to(tl.int64) * part_stride + n
    tl.store(maximum_out + at, maximum, mask=n < n_valid)
    tl.store(total_out + at, tl.sum(totals, 1), mask=n < n_valid)


@triton.jit(do_not_specialize=["n_all", "n_rows", "n_valid", "split_rows", "inverse_temperature"])
def mass_kernel(
    logits,  # for each head [N, K]
    strides,
    columns,
    potential,  # [sum K]
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
    a = tl.load(potential + head_column + k, mask=k < n_columns, other=0.0)
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
def assignments_kernel(
    logits,  # for each head [N, K]
    strides,
    columns,
    potential,  # [sum K]
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
    a = tl.load(potential + head_column + k, mask=k < n_columns, other=0.0)
    x = tl.fma(z.to(tl.float32), inverse_temperature, a[None, :])  # [ROWS, COLUMNS]
    at = head.to(tl.int64) * n_rows + n
    maximum = tl.load(row_maximum + at, mask=n < n_valid, other=0.0)
    total = tl.load(row_total + at, mask=n < n_valid, other=1.0)
    q = tl.exp(x - maximum[:, None]) / total[:, None]
    q_rows = pick(out, head, HEADS) + row * n_columns
    tl.store(q_rows[:, None] + k[None, :], q, mask=inside)


@triton.jit(do_not_specialize=["part_stride", "n_rows", "n_valid", "inverse_temperature"])
def iteration_kernel(
    logits,  # for each head [N, K]
    strides,
    columns,
    row,  # [H, N], potentials of the last iteration
    potential,  # [sum K], of the last iteration, then of this one
    maximum_out,  # [units, N]
    total_out,  # [units, N]
    width,
    part_stride,
    n_rows,
    n_valid,
    inverse_temperature,
    HEADS: tl.constexpr,
    FIRST: tl.constexpr,  # no potentials yet
    ROWS: tl.constexpr,  # at least n_valid
    COLUMNS: tl.constexpr,
):
    """One iteration for so few rows that a tile holds them all: one read of the logits."""
    unit = tl.program_id(0)
    head, column, head_column, _, n_columns = locate(unit, columns, width, HEADS)
    n = tl.arange(0, ROWS)
    valid = n < n_valid
    z_rows = pick(logits, head, HEADS) + n.to(tl.int64) * pick(strides, head, HEADS)
    b = tl.zeros([ROWS], tl.float32)
    if not FIRST:
        b = tl.load(row + head.to(tl.int64) * n_rows + n, mask=valid, other=0.0)
    row_maximum = tl.full([ROWS], LOWEST, tl.float32)
    row_total = tl.zeros([ROWS], tl.float32)
    for start in range(column, tl.minimum(column + width, n_columns), COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        inside = valid[:, None] & (k < n_columns)[None, :]
        z = tl.load(z_rows[:, None] + k[None, :], mask=inside, other=float("-inf")).to(tl.float32)
        a = tl.zeros([COLUMNS], tl.float32)
        if FIRST:
            x = z * inverse_temperature  # [ROWS, COLUMNS]
            maximum = tl.maximum(tl.max(x, 0), LOWEST)
            total = tl.sum(tl.exp(x - maximum[None, :]), 0)
            # What lies outside has no terms: its potential stays 0.
            a = tl.where(total > 0, -(maximum + tl.log(tl.where(total > 0, total, 1.0))), 0.0)
        else:
            a = tl.load(potential + head_column + k, mask=k < n_columns, other=0.0)
            mass = tl.sum(tl.exp(tl.fma(z, inverse_temperature, a[None, :]) + b[:, None]), 0)
            a -= tl.log(tl.where(mass > 0, mass, 1.0))
        tl.store(potential + head_column + k, a, mask=k < n_columns)
        x = tl.fma(z, inverse_temperature, a[None, :])
        row_maximum, row_total = add_exponentials(x, row_maximum, row_total, 1)
    at = unit.to(tl.int64) * part_stride + n
    tl.store(maximum_out + at, row_maximum, mask=valid)
    tl.store(total_out + at, row_total, mask=valid)
