"""What all kernels share: ragged heads in one launch, and running log-sum-exps.

The heads of a pass differ in their number of columns. A launch cuts every head into units of equal
width and numbers the units through all heads; a program finds its head from its unit. Tensors,
strides and columns reach the kernel as tuples with one entry for each head.
"""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Starts a running maximum. Finite, so that exp(maximum - new maximum) is never exp(-inf + inf).
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


class Heads(NamedTuple):
    """Matrices of all heads as kernel arguments.

    Attributes:
        matrices: For each head [rows, columns], columns contiguous.
        strides: Distance of two rows, in elements.
        columns: Number of columns.
    """

    matrices: tuple[Tensor, ...]
    strides: tuple[int, ...]
    columns: tuple[int, ...]


def pack(matrices: Sequence[Tensor]) -> Heads:
    """Kernel arguments for one matrix of each head; copies those whose columns are strided."""
    rows = tuple(m if m.stride(1) == 1 or m.shape[1] == 1 else m.contiguous() for m in matrices)
    return Heads(rows, tuple(m.stride(0) for m in rows), tuple(m.shape[1] for m in rows))


def count_units(columns: Sequence[int], width: int) -> int:
    """Number of units of `width` columns through all heads."""
    return sum(-(-n // width) for n in columns)


def unit_width(columns: Sequence[int], row_blocks: int, block: int, programs: int) -> int:
    """Width of the units: the widest of block * 2^i that still gives about `programs` programs.

    Wide units leave less to combine afterwards, narrow ones fill the device at few rows.
    """
    width = block
    while width < max(columns) and row_blocks * sum(columns) >= 2 * programs * width:
        width *= 2
    return width


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device the current one, which is where Triton launches."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


@triton.jit
def pick(values, head, HEADS: tl.constexpr):
    """values[head] for a head that is known only when the program runs."""
    value = values[0]
    for h in tl.static_range(1, HEADS):
        value = tl.where(head == h, values[h], value)
    return value


@triton.jit
def locate(unit, columns, width, HEADS: tl.constexpr):
    """Where a unit lies.

    Returns:
        head, the unit's first column in the head, the head's first column in vectors over the
        columns of all heads, the head's first unit, the head's number of columns.
    """
    head = 0
    head_column = 0
    head_unit = 0
    n_columns = columns[0]
    columns_before = 0
    units_before = 0
    for h in tl.static_range(HEADS):
        reached = unit >= units_before
        head = tl.where(reached, h, head)
        head_column = tl.where(reached, columns_before, head_column)
        head_unit = tl.where(reached, units_before, head_unit)
        n_columns = tl.where(reached, columns[h], n_columns)
        columns_before += columns[h]
        units_before += (columns[h] + width - 1) // width
    return head, (unit - head_unit) * width, head_column, head_unit, n_columns


@triton.jit
def head_units(head, columns, width, HEADS: tl.constexpr):
    """First unit of a head and the first one after it."""
    start = 0
    stop = 0
    units = 0
    for h in tl.static_range(HEADS):
        start = tl.where(head == h, units, start)
        units += (columns[h] + width - 1) // width
        stop = tl.where(head == h, units, stop)
    return start, stop


@triton.jit
def add_exponentials(x, maximum, total, AXIS: tl.constexpr):
    """Takes a tile x into a running log-sum-exp along AXIS: sum of exp = total * exp(maximum)."""
    larger = tl.maximum(maximum, tl.max(x, AXIS))
    terms = tl.exp(x - tl.expand_dims(larger, AXIS))
    return larger, total * tl.exp(maximum - larger) + tl.sum(terms, AXIS)


@triton.jit
def merge_exponentials(maxima, totals, maximum, total, AXIS: tl.constexpr):
    """Takes a tile of partial log-sum-exps into a running one along AXIS."""
    larger = tl.maximum(maximum, tl.max(maxima, AXIS))
    terms = totals * tl.exp(maxima - tl.expand_dims(larger, AXIS))
    return larger, total * tl.exp(maximum - larger) + tl.sum(terms, AXIS)


@triton.jit
def teacher_potentials(row, n_teacher, teacher_rows, m, valid, n_targets, p):
    """The p-th teacher row that each student row m meets, and its potential.

    A row that does not exist is not read: its potential is nan, so that nothing hides it.
    """
    n = tl.load(teacher_rows + m.to(tl.int64) * n_targets + p, mask=valid, other=0)
    known = (n >= 0) & (n < n_teacher)
    n = tl.where(known, n, 0)
    return n, tl.where(known, tl.load(row + n, mask=valid, other=0.0), float("nan"))
