"""Clustering cross-entropy in the compiled core.

The functions are those of `backends.torch.clustering_cross_entropy`, which says what they compute.
Targets are rebuilt from the teacher's logits a few hundred at a time, so nothing of the size of the
logits is stored but the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import Heads, matrix, pack_heads, places, vector
from franca_fast.errors import InputError


def _problem(
    student: Heads,
    teacher_logits: Sequence[Tensor],
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> tuple[Any, tuple[Any, ...]]:
    """The inputs as the core takes them, and the tensors that must live as long."""
    teacher = pack_heads(teacher_logits, "teacher")
    prototype = vector(prototype, "prototype", (sum(teacher.columns),), torch.float32)
    row = vector(row, "row", (len(teacher.columns), teacher.n_rows), torch.float32)
    weights = vector(weights, "weights", (student.n_rows,), torch.float32)
    if teacher_rows.dim() != 2:
        raise InputError(
            f"teacher_rows: expected shape [{student.n_rows}, P], got {list(teacher_rows.shape)}"
        )
    n_targets = teacher_rows.shape[1]
    teacher_rows = vector(teacher_rows, "teacher_rows", (student.n_rows, n_targets), torch.int64)
    problem = _C.ClusteringProblem(
        student.numbers,
        student.n_rows,
        student.dtype,
        teacher.numbers,
        teacher.n_rows,
        teacher.dtype,
        prototype.data_ptr(),
        row.data_ptr(),
        student_temperature,
        teacher_temperature,
        teacher_rows.data_ptr(),
        n_targets,
        weights.data_ptr(),
    )
    return problem, (teacher, prototype, row, teacher_rows, weights)


def forward(
    student: list[Tensor],
    teacher: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Loss [H] and log-sum-exp of the student rows [H, M], both float32."""
    heads = pack_heads(student, "student")
    problem, alive = _problem(
        heads,
        teacher,
        prototype,
        row,
        student_temperature,
        teacher_temperature,
        teacher_rows,
        weights,
    )
    n_heads = len(heads.columns)
    loss, lse = torch.empty(n_heads), torch.empty(n_heads, heads.n_rows)
    n_bytes = _C.clustering_forward_workspace(n_heads, heads.n_rows)
    workspace = torch.empty(n_bytes, dtype=torch.uint8)
    _C.clustering_forward(
        problem,
        loss.data_ptr(),
        lse.data_ptr(),
        workspace.data_ptr(),
        n_bytes,
        torch.get_num_threads(),
    )
    del alive
    return loss, lse


def backward(
    grad_loss: Tensor,
    student: list[Tensor],
    teacher: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    lse: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
    out: list[Tensor] | None = None,
) -> list[Tensor]:
    """Gradient of the student logits: grad * w/t * (P softmax(s/t) - q), in their dtype.

    `out` is where to write the gradients, with adjacent columns; it may be `student` itself, whose
    logits are then lost. By default new memory is taken.
    """
    heads = pack_heads(student, "student")
    problem, alive = _problem(
        heads,
        teacher,
        prototype,
        row,
        student_temperature,
        teacher_temperature,
        teacher_rows,
        weights,
    )
    n_heads = len(heads.columns)
    grad_loss = vector(grad_loss, "grad_loss", (n_heads,), torch.float32)
    lse = vector(lse, "lse", (n_heads, heads.n_rows), torch.float32)
    if out is None:
        out = [matrix(s.shape[0], s.shape[1], s.dtype) for s in student]
        numbers = [n for g in out for n in (g.data_ptr(), g.shape[1], g.shape[1])]
    else:
        numbers = places(out, heads)
    _C.clustering_backward(
        problem, grad_loss.data_ptr(), lse.data_ptr(), numbers, torch.get_num_threads()
    )
    del alive
    return out
