"""Clustering cross-entropy as Triton kernels, one launch for all heads and all pairs."""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from franca_fast.backends.contracts import ClusteringProblem, Scores
from franca_fast.backends.triton._heads import (
    LOWEST,
    count_units,
    locate,
    on_device_of,
    pack,
    pick,
    teacher_potentials,
    unit_width,
)
from franca_fast.backends.triton._reductions import RowSums, combine_losses

_TILE = (4, 1024)  # rows and columns; a row of 4 values of a thread is one vector load
_WARPS = 8
_PROGRAMS = 2048  # enough to fill a large GPU several times over


def forward(problem: ClusteringProblem) -> tuple[Tensor, Tensor]:
    students, teachers = pack(problem.student.values), pack(problem.teacher.values)
    n_rows, n_targets = problem.teacher_rows.shape
    weights = problem.weights
    rows, columns = _TILE
    row_blocks = triton.cdiv(n_rows, rows)
    width = unit_width(students.columns, row_blocks, columns, _PROGRAMS)
    units = count_units(students.columns, width)
    parts = RowSums(units, n_rows, weights)
    agreement = torch.empty_like(parts.maximum)
    with on_device_of(weights):
        if n_rows:
            _forward[(row_blocks, units)](
                *students,
                *teachers[:2],
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
                1.0 / problem.student_temperature,
                1.0 / problem.teacher_temperature,
                HEADS=len(students.columns),
                TARGETS=n_targets,
                ROWS=rows,
                COLUMNS=columns,
                num_warps=_WARPS,
            )
        return combine_losses(
            parts, agreement, students.columns, width, weights.contiguous(), n_targets
        )


def backward(
    problem: ClusteringProblem,
    grad_loss: Tensor,
    lse: Tensor,
    out: Sequence[Tensor] | None = None,
) -> Scores:
    students, teachers = pack(problem.student.values), pack(problem.teacher.values)
    n_rows, n_targets = problem.teacher_rows.shape
    gradients = out or [s.new_empty(s.shape) for s in problem.student.values]
    if n_rows == 0:
        return Scores(gradients)
    rows, columns = _TILE
    with on_device_of(problem.weights):
        _backward[(triton.cdiv(n_rows, rows), count_units(students.columns, columns))](
            grad_loss.contiguous(),
            *students,
            *teachers[:2],
            problem.prototype_potentials.contiguous(),
            problem.row_potentials.contiguous(),
            lse.contiguous(),
            problem.teacher_rows.contiguous(),
            problem.weights.contiguous(),
            tuple(gradients),
            n_rows,
            problem.row_potentials.shape[1],
            1.0 / problem.student_temperature,
            1.0 / problem.teacher_temperature,
            HEADS=len(students.columns),
            TARGETS=n_targets,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=_WARPS,
        )
    return Scores(gradients)


@triton.jit
def _targets(
    teacher_columns,  # pointers to one row of z, [COLUMNS]
    stride,
    a,  # [COLUMNS]
    row,  # [N], potentials of this head
    n_teacher,  # N
    teacher_rows,  # [M, P]
    m,  # [ROWS]
    valid,  # [ROWS]
    inside,  # [ROWS, COLUMNS]
    inverse_temperature,
    TARGETS: tl.constexpr,
):
    """q[m, k]: the sum over the teacher rows that meet row m of exp(z/T + a + b)."""
    q = tl.zeros(inside.shape, tl.float32)
    for p in tl.static_range(TARGETS):
        n, b = teacher_potentials(row, n_teacher, teacher_rows, m, valid, TARGETS, p)
        z_at = teacher_columns[None, :] + n[:, None] * stride
        z = tl.load(z_at, mask=inside, other=float("-inf")).to(tl.float32)
        q += tl.exp(tl.fma(z, inverse_temperature, a[None, :]) + b[:, None])
    return q


@triton.jit(
    do_not_specialize=[
        "part_stride",
        "n_rows",
        "n_teacher",
        "inverse_student",
        "inverse_teacher",
    ]
)
def _forward(
    student,  # for each head [M, K]
    student_strides,
    columns,
    teacher,  # for each head [N, K]
    teacher_strides,
    potential,  # [sum K]
    row,  # [H, N]
    teacher_rows,  # [M, P]
    maximum_out,  # [units, M]
    total_out,  # [units, M]
    agreement_out,  # [units, M]
    width,
    part_stride,
    n_rows,
    n_teacher,
    inverse_student,
    inverse_teacher,
    HEADS: tl.constexpr,
    TARGETS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    unit = tl.program_id(1)
    head, column, head_column, _, n_columns = locate(unit, columns, width, HEADS)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = m < n_rows
    s_rows = pick(student, head, HEADS) + m.to(tl.int64) * pick(student_strides, head, HEADS)
    teacher_head = pick(teacher, head, HEADS)
    teacher_stride = pick(teacher_strides, head, HEADS)
    row_head = row + head.to(tl.int64) * n_teacher
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    # One sum for each lane; adding the lanes up waits until the end.
    totals = tl.zeros([ROWS, COLUMNS], tl.float32)
    agreements = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(column, tl.minimum(column + width, n_columns), COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        inside = valid[:, None] & (k < n_columns)[None, :]
        a = tl.load(potential + head_column + k, mask=k < n_columns, other=0.0)
        s = tl.load(s_rows[:, None] + k[None, :], mask=inside, other=0.0)
        x = s.to(tl.float32) * inverse_student  # [ROWS, COLUMNS]
        q = _targets(
            teacher_head + k,
            teacher_stride,
            a,
            row_head,
            n_teacher,
            teacher_rows,
            m,
            valid,
            inside,
            inverse_teacher,
            TARGETS,
        )
        agreements += q * x
        x = tl.where(inside, x, float("-inf"))
        larger = tl.maximum(maximum, tl.max(x, 1))
        totals = totals * tl.exp(maximum - larger)[:, None] + tl.exp(x - larger[:, None])
        maximum = larger
    at = unit.to(tl.int64) * part_stride + m
    tl.store(maximum_out + at, maximum, mask=valid)
    tl.store(total_out + at, tl.sum(totals, 1), mask=valid)
    tl.store(agreement_out + at, tl.sum(agreements, 1), mask=valid)


@triton.jit(do_not_specialize=["n_rows", "n_teacher", "inverse_student", "inverse_teacher"])
def _backward(
    grad_loss,  # [H]
    student,  # for each head [M, K]
    student_strides,
    columns,
    teacher,  # for each head [N, K]
    teacher_strides,
    potential,  # [sum K]
    row,  # [H, N]
    lse,  # [H, M]
    teacher_rows,  # [M, P]
    weights,  # [M]
    out,  # for each head [M, K]
    n_rows,
    n_teacher,
    inverse_student,
    inverse_teacher,
    HEADS: tl.constexpr,
    TARGETS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head, column, head_column, _, n_columns = locate(tl.program_id(1), columns, COLUMNS, HEADS)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = column + tl.arange(0, COLUMNS)
    valid = m < n_rows
    inside = valid[:, None] & (k < n_columns)[None, :]
    wide_m = m.to(tl.int64)
    a = tl.load(potential + head_column + k, mask=k < n_columns, other=0.0)
    s_rows = pick(student, head, HEADS) + wide_m * pick(student_strides, head, HEADS)
    s = tl.load(s_rows[:, None] + k[None, :], mask=inside, other=0.0)
    q = _targets(
        pick(teacher, head, HEADS) + k,
        pick(teacher_strides, head, HEADS),
        a,
        row + head.to(tl.int64) * n_teacher,
        n_teacher,
        teacher_rows,
        m,
        valid,
        inside,
        inverse_teacher,
        TARGETS,
    )
    row_lse = tl.load(lse + head.to(tl.int64) * n_rows + m, mask=valid, other=0.0)
    softmax = tl.exp(s.to(tl.float32) * inverse_student - row_lse[:, None])
    factor = tl.load(weights + m, mask=valid, other=0.0) * tl.load(grad_loss + head)
    gradient = (factor * inverse_student)[:, None] * (TARGETS * softmax - q)  # [ROWS, COLUMNS]
    out_rows = pick(out, head, HEADS) + wide_m * n_columns
    tl.store(out_rows[:, None] + k[None, :], gradient.to(out_rows.dtype.element_ty), mask=inside)
