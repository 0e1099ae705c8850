"""The clustering operators on scores that are never stored, on tensor cores."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import franca_fast.backends.torch.streamed_clustering as reference
from franca_fast import _C
from franca_fast.backends._core import pack_targets, vector
from franca_fast.backends._sinkhorn_iteration import balance
from franca_fast.backends._streamed_backward import backward as chunked_backward
from franca_fast.backends._streamed_backward import chunk_columns, padded
from franca_fast.backends.contracts import ClusteringProblem, Scores
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace
from franca_fast.backends.cuda._streamed_scores import Streamed, pack_streamed

_BLOCK_COLUMNS = 2048  # a slice, see csrc/cuda/logits.cuh


def potentials(
    scores: Scores, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    return balance(column_logsumexp, row_step, scores, temperature, n_iterations, n_valid)


def column_logsumexp(scores: Scores, temperature: float, n_valid: int) -> tuple[Tensor, Tensor]:
    packed, device = pack_streamed(scores), scores.values[0].device
    result = torch.empty(2, sum(packed.columns), dtype=torch.float32, device=device)
    maximum, total = result.unbind(0)
    with on_device_of(result):
        n_bytes = _C.cuda.streamed_column_workspace(packed.arguments, n_valid)
        memory = workspace(n_bytes, device)
        _C.cuda.streamed_column_logsumexp(
            packed.arguments,
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
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    packed, device = pack_streamed(scores), scores.values[0].device
    a = vector(
        prototype_potentials, "prototype_potentials", (sum(packed.columns),), torch.float32, device
    )
    b = torch.empty(len(packed.columns), packed.n_rows, dtype=torch.float32, device=device)
    mass = torch.empty_like(a) if with_mass else None
    with on_device_of(b):
        n_bytes = _C.cuda.streamed_row_step_workspace(packed.arguments, n_valid)
        memory = workspace(n_bytes, device)
        _C.cuda.streamed_row_step(
            packed.arguments,
            temperature,
            a.data_ptr(),
            n_valid,
            b.data_ptr(),
            0 if mass is None else mass.data_ptr(),
            memory.data_ptr(),
            n_bytes,
            stream_of(b),
        )
    return b, mass


class _Packed(NamedTuple):
    view: Any  # the problem as the core takes it
    student: Streamed
    alive: tuple[object, ...]


def _packed(problem: ClusteringProblem) -> _Packed:
    own, other = pack_streamed(problem.student), pack_streamed(problem.teacher)
    device = problem.weights.device
    numbers, alive = pack_targets(problem, own.n_rows, other.n_rows, other.columns, device)
    view = _C.cuda.StreamedProblem(own.arguments, other.arguments, *numbers)
    return _Packed(view, own, (other, alive))


def _is_mixed(problem: ClusteringProblem) -> bool:
    """Whether the sides differ in their type, which one kernel that holds tiles of both cannot."""
    return problem.student.values[0].dtype != problem.teacher.values[0].dtype


def forward(problem: ClusteringProblem) -> tuple[Tensor, Tensor]:
    if _is_mixed(problem):
        return reference.forward(problem)
    packed, device = _packed(problem), problem.weights.device
    n_heads = len(packed.student.columns)
    loss = torch.empty(n_heads, dtype=torch.float32, device=device)
    lse = torch.empty(n_heads, packed.student.n_rows, dtype=torch.float32, device=device)
    with on_device_of(loss):
        n_bytes = _C.cuda.streamed_forward_workspace(packed.view)
        memory = workspace(n_bytes, device)
        _C.cuda.streamed_forward(
            packed.view,
            loss.data_ptr(),
            lse.data_ptr(),
            memory.data_ptr(),
            n_bytes,
            stream_of(loss),
        )
    return loss, lse


def backward(problem: ClusteringProblem, grad_loss: Tensor, lse: Tensor) -> Scores:
    if _is_mixed(problem):
        return reference.backward(problem, grad_loss, lse)
    packed, device = _packed(problem), problem.weights.device
    n_heads, n_rows = lse.shape
    grad_loss = vector(grad_loss, "grad_loss", (n_heads,), torch.float32, device)
    lse = vector(lse, "lse", (n_heads, n_rows), torch.float32, device)
    with on_device_of(lse):
        kernel = _GradientKernel(packed, problem.student.values[0], grad_loss, lse)
        return chunked_backward(problem.student, _BLOCK_COLUMNS, kernel)


class _GradientKernel:
    """Gradient of the products <x, v> of some prototypes of a head, in memory of its own."""

    def __init__(self, packed: _Packed, x: Tensor, grad_loss: Tensor, lse: Tensor) -> None:
        self._packed, self._grad_loss, self._lse = packed, grad_loss, lse
        self._n_rows = lse.shape[1]
        width = min(max(packed.student.columns), chunk_columns(self._n_rows, _BLOCK_COLUMNS))
        # Rows begin on 16 bytes, for the library.
        self._products = x.new_empty(self._n_rows * padded(width))
        self._n_bytes = _C.cuda.streamed_gradient_workspace(self._n_rows, width)
        self._memory = workspace(self._n_bytes, x.device)
        self._stream = stream_of(x)

    def __call__(self, head: int, columns: slice, dscale: Tensor) -> Tensor:
        width = dscale.shape[0]
        stride = padded(width)
        _C.cuda.streamed_gradient(
            self._packed.view,
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
