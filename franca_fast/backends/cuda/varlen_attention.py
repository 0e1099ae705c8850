"""Attention over packed sequences on tensor cores, with tiles cut to the lengths.

Lengths and tiles travel as kernel parameters, so nothing is copied to the device. Other head_dims
than 64 and 128, and lengths for which PyTorch's kernels are faster on the card, are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from franca_fast import _C
from franca_fast.backends import _fused_attention
from franca_fast.backends._fused_attention import packed, runs_on_gpu, view
from franca_fast.backends.contracts import AttentionProblem
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace
from franca_fast.backends.torch.varlen_attention import Run


def forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    return _fused_attention.forward(_forward, runs_on_gpu(problem, "cuda"), problem)


def backward(
    problem: AttentionProblem,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    own = runs_on_gpu(problem, "cuda")
    _fused_attention.backward(_backward, own, problem, (grad_out, out, lse), gradients)


def _forward(problem: AttentionProblem, runs: tuple[Run, ...], out: Tensor, lse: Tensor) -> None:
    q, arguments = problem.q, packed(problem, runs)
    with on_device_of(q):
        _C.cuda.attention_forward(arguments, view(out), lse.data_ptr(), stream_of(q))


def _backward(
    problem: AttentionProblem,
    runs: tuple[Run, ...],
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    q, arguments = problem.q, packed(problem, runs)
    targets = [view(x) for x in gradients]
    with on_device_of(q):
        n_bytes = _C.cuda.attention_backward_workspace(arguments)
        memory = workspace(n_bytes, q.device)
        _C.cuda.attention_backward(
            arguments,
            view(grad_out),
            view(out),
            lse.data_ptr(),
            *targets,
            memory.data_ptr(),
            n_bytes,
            stream_of(q),
        )
