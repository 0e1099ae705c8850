"""The clustering operators on scores that are never stored, on tensor cores.

The functions are those of `backends.torch.streamed_clustering`, which says what they compute.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import vector
from franca_fast.backends._streamed_backward import Gradients, Side, chunk_columns, padded
from franca_fast.backends._streamed_backward import backward as chunked_backward
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace
from franca_fast.backends.cuda._factors import Factors, pack_factors
from franca_fast.backends.torch import streamed_clustering as reference

_BLOCK_COLUMNS = 2048  # a slice, see csrc/cuda/logits.cuh


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

    problem = _problem(student, teacher, prototype, row, temperatures, teacher_rows, weights)
    device, (n_heads, n_rows) = weights.device, lse.shape
    grad_loss = vector(grad_loss, "grad_loss", (n_heads,), torch.float32, device)
    lse = vector(lse, "lse", (n_heads, n_rows), torch.float32, device)
    with on_device_of(weights):
        kernel = _GradientKernel(problem, student[0][0], grad_loss, lse)
        return chunked_backward(student, _BLOCK_COLUMNS, kernel)


class _GradientKernel:
    """Gradient of the products <x, v> of some prototypes of a head, in memory of its own."""

    def __init__(self, problem: _Problem, x: Tensor, grad_loss: Tensor, lse: Tensor) -> None:
        self._problem, self._grad_loss, self._lse = problem, grad_loss, lse
        self._n_rows = lse.shape[1]
        width = min(max(problem.student.columns), chunk_columns(self._n_rows, _BLOCK_COLUMNS))
        # Rows begin on 16 bytes, for the library.
        self._products = x.new_empty(self._n_rows * padded(width))
        self._n_bytes = _C.cuda.streamed_gradient_workspace(self._n_rows, width)
        self._memory = workspace(self._n_bytes, x.device)
        self._stream = stream_of(x)

    def __call__(self, head: int, columns: slice, dscale: Tensor) -> Tensor:
        width = dscale.shape[0]
        stride = padded(width)
        _C.cuda.streamed_gradient(
            self._problem.view,
            (head, columns.start, width),
            self._grad_loss.data_ptr(),
            self._lse.data_ptr(),
            self._products.data_ptr(),
            stride,
            dscale.data_ptr(),
            self._memory.data_ptr(),
            self._n_bytes,
            self._stream,
        )
        return self._products.as_strided((self._n_rows, width), (stride, 1))
