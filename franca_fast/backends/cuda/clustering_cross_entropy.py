"""Clustering cross-entropy as CUDA kernels.

The functions are those of `backends.torch.clustering_cross_entropy`, which says what they compute.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import Heads, pack_heads, places, vector
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace


class _Problem(NamedTuple):
    view: Any  # the inputs as the core takes them
    student: Heads
    alive: tuple[Any, ...]  # what the addresses point into


def _problem(
    student: list[Tensor],
    teacher: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> _Problem:
    device = student[0].device
    own, other = pack_heads(student, "student", device), pack_heads(teacher, "teacher", device)
    n_heads, n_targets = len(other.columns), teacher_rows.shape[1]
    vectors = (
        vector(prototype, "prototype", (sum(other.columns),), torch.float32, device),
        vector(row, "row", (n_heads, other.n_rows), torch.float32, device),
        vector(teacher_rows, "teacher_rows", (own.n_rows, n_targets), torch.int64, device),
        vector(weights, "weights", (own.n_rows,), torch.float32, device),
    )
    prototype, row, teacher_rows, weights = vectors
    view = _C.ClusteringProblem(
        own.numbers,
        own.n_rows,
        own.dtype,
        other.numbers,
        other.n_rows,
        other.dtype,
        prototype.data_ptr(),
        row.data_ptr(),
        student_temperature,
        teacher_temperature,
        teacher_rows.data_ptr(),
        n_targets,
        weights.data_ptr(),
    )
    return _Problem(view, own, (other, vectors))


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
    problem = _problem(
        student,
        teacher,
        prototype,
        row,
        student_temperature,
        teacher_temperature,
        teacher_rows,
        weights,
    )
    device, n_heads = student[0].device, len(student)
    loss = torch.empty(n_heads, dtype=torch.float32, device=device)
    lse = torch.empty(n_heads, problem.student.n_rows, dtype=torch.float32, device=device)
    with on_device_of(loss):
        memory = workspace(_C.cuda.clustering_forward_workspace(problem.view), device)
        _C.cuda.clustering_forward(
            problem.view,
            loss.data_ptr(),
            lse.data_ptr(),
            memory.data_ptr(),
            memory.numel(),
            stream_of(loss),
        )
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

    The gradients are written to `out`, matrices of the shapes and dtype of the student with
    adjacent columns. It may be `student` itself, whose logits are then lost.
    """
    problem = _problem(
        student,
        teacher,
        prototype,
        row,
        student_temperature,
        teacher_temperature,
        teacher_rows,
        weights,
    )
    device, n_heads = student[0].device, len(student)
    grad_loss = vector(grad_loss, "grad_loss", (n_heads,), torch.float32, device)
    lse = vector(lse, "lse", (n_heads, problem.student.n_rows), torch.float32, device)
    if out is None:
        out = [torch.empty(s.shape, dtype=s.dtype, device=device) for s in student]
    gradient = places(out, problem.student, device)
    with on_device_of(lse):
        _C.cuda.clustering_backward(
            problem.view,
            grad_loss.data_ptr(),
            lse.data_ptr(),
            gradient,
            stream_of(lse),
        )
    return out
