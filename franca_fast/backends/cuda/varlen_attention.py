"""Attention over packed sequences on tensor cores, with tiles cut to the lengths.

The functions are those of `backends.torch.varlen_attention`, which says what they compute. Lengths
and tiles travel as kernel parameters, so nothing is copied to the device. Other head_dims than 64
and 128, and lengths for which PyTorch's kernels are faster on the card, are theirs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from franca_fast import _C
from franca_fast.backends import _fused_attention as fused_attention
from franca_fast.backends.cpu import DTYPE_CODES
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace
from franca_fast.backends.torch.varlen_attention import Run


def forward(
    q: Tensor, k: Tensor, v: Tensor, seqlens: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, head_dim] and log-sum-exp [tokens, heads]."""
    return fused_attention.forward(_forward, "cuda", (q, k, v), seqlens, scale)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    seqlens: list[int],
    scale: float,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients of q, k and v, [tokens, heads, head_dim] in any strides."""
    tensors = (grad_out, q, k, v, out, lse)
    fused_attention.backward(_backward, "cuda", tensors, seqlens, scale, gradients)


def _view(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _problem(q: Tensor, k: Tensor, v: Tensor, runs: tuple[Run, ...], scale: float) -> Any:
    numbers = [number for run in runs for number in run]
    parts = (_view(q), _view(k), _view(v))
    return _C.cuda.AttentionProblem(*parts, numbers, *q.shape, DTYPE_CODES[q.dtype], scale)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    runs: tuple[Run, ...],
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    problem = _problem(q, k, v, runs, scale)
    with on_device_of(q):
        _C.cuda.attention_forward(problem, _view(out), lse.data_ptr(), stream_of(q))


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    runs: tuple[Run, ...],
    scale: float,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    problem = _problem(q, k, v, runs, scale)
    targets = [_view(x) for x in gradients]
    with on_device_of(q):
        n_bytes = _C.cuda.attention_backward_workspace(problem)
        memory = workspace(n_bytes, q.device)
        _C.cuda.attention_backward(
            problem,
            _view(grad_out),
            _view(out),
            lse.data_ptr(),
            *targets,
            memory.data_ptr(),
            n_bytes,
            stream_of(q),
        )
