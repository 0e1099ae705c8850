"""Attention over packed sequences on tensor cores, with tiles cut to the lengths.

Lengths and tiles travel as kernel parameters, so nothing is copied to the device. Other head_dims
than 64 and 128, and lengths for which PyTorch's kernels are faster on the card, are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from franca_fast import _C
from franca_fast.backends import _fused_attention
from franca_fast.backends._core import DTYPE_CODES
from franca_fast.backends.contracts import AttentionProblem
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace
from franca_fast.backends.torch.varlen_attention import Run


def forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    return _fused_attention.forward(_forward, "cuda", problem)


def backward(
    problem: AttentionProblem,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    _fused_attention.backward(_backward, "cuda", problem, (grad_out, out, lse), gradients)


def _view(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _packed(problem: AttentionProblem, runs: tuple[Run, ...]) -> Any:
    """The problem as the core takes it."""
    q, k, v, _, scale = problem
    numbers = [number for run in runs for number in run]
    parts = (_view(q), _view(k), _view(v))
    return _C.cuda.AttentionProblem(*parts, numbers, *q.shape, DTYPE_CODES[q.dtype], scale)


def _forward(problem: AttentionProblem, runs: tuple[Run, ...], out: Tensor, lse: Tensor) -> None:
    q, view = problem.q, _packed(problem, runs)
    with on_device_of(q):
        _C.cuda.attention_forward(view, _view(out), lse.data_ptr(), stream_of(q))


def _backward(
    problem: AttentionProblem,
    runs: tuple[Run, ...],
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    q, view = problem.q, _packed(problem, runs)
    targets = [_view(x) for x in gradients]
    with on_device_of(q):
        n_bytes = _C.cuda.attention_backward_workspace(view)
        memory = workspace(n_bytes, q.device)
        _C.cuda.attention_backward(
            view,
            _view(grad_out),
            _view(out),
            lse.data_ptr(),
            *targets,
            memory.data_ptr(),
            n_bytes,
            stream_of(q),
        )
