"""The clustering operators on scores that are never stored, on tensor cores.

The functions are those of `backends.torch.streamed_clustering`, which says what they compute.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._streamed_backward import Chunk, Gradients, Side
from franca_fast.backends._streamed_backward import backward as chunked_backward
from franca_fast.backends.compiled.views import vector
from franca_fast.backends.torch import streamed_clustering as reference

from ._device import on_device_of, stream_of, workspace
from ._factors import Factors, pack_factors

_CHUNK_COLUMNS = 2048


def column_logsumexp(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor],
    temperature: float,
    n_valid: int,
) -> tuple[Tensor, Tensor]:
    """Maximum of z/T over the valid rows and sum of exp(z/T - maximum), both [sum K]."""
    factors, device = pack_factors(features, prototypes, scales), features[0].device
    result = torch.empty(2, sum(factors.columns), dtype=torch.float32, device=device)
    maximum, total = result.unbind(0)
    with on_device_of(result):
        n_bytes = _C.cuda.streamed_column_workspace(factors.arguments, n_valid)
        memory = workspace(n_bytes, device)
        _C.cuda.streamed_column_logsumexp(
            factors.arguments,
            temperature,
            n_valid,
            maximum.data_ptr(),
            total.data_ptr(),
            memory.data_ptr(),
            n_bytes,
            stream_of(result),
        )
    return maximum, total


def row_step(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor],
    temperature: float,
    prototype: Tensor,
    n_valid: int,
    with_mass: bool,
) -> tuple[Tensor, Tensor | None]:
    """Row potentials [H, N] for given prototype potentials and, on request, the mass [sum K]."""
    factors, device = pack_factors(features, prototypes, scales), features[0].device
    prototype = vector(prototype, "prototype", (sum(factors.columns),), torch.float32, device)
    row = torch.empty(len(features), factors.n_rows, dtype=torch.float32, device=device)
    mass = torch.empty_like(prototype) if with_mass else None
    with on_device_of(row):
        n_bytes = _C.cuda.streamed_row_step_workspace(factors.arguments, n_valid)
        memory = workspace(n_bytes, device)
        _C.cuda.streamed_row_step(
            factors.arguments,
            temperature,
            prototype.data_ptr(),
            n_valid,
            row.data_ptr(),
            0 if mass is None else mass.data_ptr(),
            memory.data_ptr(),
            n_bytes,
            stream_of(row),
        )
    return row, mass


class _Problem(NamedTuple):
    view: Any  # the inputs as the core takes them
    student: Factors
    alive: tuple[Any, ...]


def _problem(
    student: Side,
    teacher: Side,
    prototype: Tensor,
    row: Tensor,
    temperatures: tuple[float, float],
    teacher_rows: Tensor,
    weights: Tensor,
) -> _Problem:
    own, other = pack_factors(*student), pack_factors(*teacher)
    device = weights.device
    n_targets = teacher_rows.shape[1]
    vectors = (
        vector(prototype, "prototype", (sum(other.columns),), torch.float32, device),
        vector(row, "row", (len(other.columns), other.n_rows), torch.float32, device),
        vector(teacher_rows, "teacher_rows", (own.n_rows, n_targets), torch.int64, device),
        vector(weights, "weights", (own.n_rows,), torch.float32, device),
    )
    prototype, row, teacher_rows, weights = vectors
    view = _C.cuda.StreamedProblem(
        own.arguments,
        other.arguments,
        prototype.data_ptr(),
        row.data_ptr(),
        *temperatures,
        teacher_rows.data_ptr(),
        n_targets,
        weights.data_ptr(),
    )
    return _Problem(view, own, (other, vectors))


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
    temperatures = (student_temperature, teacher_temperature)
    if student[0][0].dtype != teacher[0][0].dtype:
        # One kernel holds tiles of both sides, so they share their type.
        return reference.forward(
            student, teacher, prototype, row, *temperatures, teacher_rows, weights
        )
    problem = _problem(student, teacher, prototype, row, temperatures, teacher_rows, weights)
    device, n_heads = weights.device, len(student[0])
    loss = torch.empty(n_heads, dtype=torch.float32, device=device)
    lse = torch.empty(n_heads, problem.student.n_rows, dtype=torch.float32, device=device)
    with on_device_of(loss):
        n_bytes = _C.cuda.streamed_forward_workspace(problem.view)
        memory = workspace(n_bytes, device)
        _C.cuda.streamed_forward(
            problem.view,
            loss.data_ptr(),
            lse.data_ptr(),
            memory.data_ptr(),
            n_bytes,
            stream_of(loss),
        )
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
) -> Gradients:
    """Gradients of the student's features, prototypes and scales, for each head."""
    temperatures = (student_temperature, teacher_temperature)
    if student[0][0].dtype != teacher[0][0].dtype:
        return reference.backward(
            grad_loss, student, teacher, prototype, row, lse, *temperatures, teacher_rows, weights
        )

    def product_gradient(chunk: Chunk) -> tuple[Tensor, Tensor]:
        (x, v, scale), (x_teacher, v_teacher, scale_teacher) = chunk.student, chunk.teacher
        problem = _problem(
            ([x], [v], [scale]),
            ([x_teacher], [v_teacher], [scale_teacher]),
            chunk.prototype,
            chunk.row.unsqueeze(0),
            temperatures,
            teacher_rows,
            weights,
        )
        return _product_gradient(problem, chunk)

    with on_device_of(weights):
        return chunked_backward(
            grad_loss, student, teacher, prototype, row, lse, _CHUNK_COLUMNS, product_gradient
        )


def _product_gradient(problem: _Problem, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Gradient of the products <x, v> [M, K] and, in parts to be summed, of the scales."""
    (n_columns,), n_rows = problem.student.columns, problem.student.n_rows
    x = chunk.student[0]
    # Rows begin on 16 bytes, for the library.
    padded = x.new_empty(n_rows, -(-n_columns // 8) * 8)
    scale_parts = chunk.lse.new_empty(_C.cuda.streamed_row_tiles(n_rows), n_columns)
    _C.cuda.streamed_gradient(
        problem.view,
        chunk.grad_loss.data_ptr(),
        chunk.lse.data_ptr(),
        padded.data_ptr(),
        padded.stride(0),
        scale_parts.data_ptr(),
        stream_of(x),
    )
    return padded[:, :n_columns], scale_parts
