"""What the fused attention kernels have in common: which runs they take and what they are given.

Compiled and Triton kernels read and write [tokens, heads, head_dim] in place, for a part of the
runs of a batch; PyTorch has the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import franca_fast.backends.torch.varlen_attention as reference
from franca_fast.backends._core import _C, DTYPE_CODES
from franca_fast.backends.choices import OWN, path, table
from franca_fast.backends.contracts import AttentionProblem
from franca_fast.backends.registry import is_requested
from franca_fast.backends.torch.varlen_attention import Run, runs_of

HEAD_DIMS = (64, 128)
_ALIGNMENT = 16  # bytes

# The kernels of one backend, given the runs of the problem that are theirs: they write the output
# and the log-sum-exp; and, given grad_out and those, the gradients.
Forward = Callable[[AttentionProblem, tuple[Run, ...], Tensor, Tensor], None]
Backward = Callable[
    [AttentionProblem, tuple[Run, ...], Tensor, Tensor, Tensor, Sequence[Tensor]], None
]


def in_place(x: Tensor) -> Tensor:
    """The tensor itself when every head starts at a multiple of 16 bytes, otherwise a copy."""
    step = _ALIGNMENT // x.element_size()
    token, head, element = x.stride()
    if element == 1 and token % step == 0 and head % step == 0 and x.data_ptr() % _ALIGNMENT == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def runs_on_gpu(problem: AttentionProblem, backend: str) -> tuple[Run, ...]:
    """The runs of a problem that the kernels of a GPU's backend take."""
    q = problem.q
    if q.shape[2] not in HEAD_DIMS or q.dtype not in (torch.bfloat16, torch.float16):
        return ()
    return own_runs(runs_of(problem.seqlens), q, backend)


def own_runs(runs: tuple[Run, ...], like: Tensor, backend: str) -> tuple[Run, ...]:
    """The runs that PyTorch's kernels are not faster at on the card of `like`.

    A backend that was asked for takes all lengths itself.
    """
    if is_requested(backend) or not like.is_cuda:
        return runs
    return _measured_runs(
        runs, torch.cuda.get_device_capability(like.device), like.shape[2], path()
    )


@functools.lru_cache(maxsize=256)
def _measured_runs(
    runs: tuple[Run, ...], capability: tuple[int, int], head_dim: int, file: str
) -> tuple[Run, ...]:
    kernels = table(file).attention_kernel
    return tuple(run for run in runs if kernels(capability, head_dim, run.length) == OWN)


def forward(
    kernel: Forward, own: tuple[Run, ...], problem: AttentionProblem
) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, head_dim] and log-sum-exp [tokens, heads]; `own` runs are ours."""
    if not own:
        return reference.forward(problem)
    q = problem.q
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    kernel(_in_place(problem), own, out, lse)
    for run in _others(problem, own):
        part = slice(run.start, run.stop)
        out[part], lse[part] = reference.forward(_of_run(problem, run))
    return out, lse


def backward(
    kernel: Backward,
    own: tuple[Run, ...],
    problem: AttentionProblem,
    tensors: tuple[Tensor, Tensor, Tensor],
    gradients: Sequence[Tensor],
) -> None:
    """Writes the gradients; `tensors` are grad_out, out and lse."""
    if own:
        grad_out, out, lse = tensors
        aligned = (in_place(grad_out), in_place(out), lse.contiguous())
        kernel(_in_place(problem), own, *aligned, gradients)
    for run in _others(problem, own):
        part = slice(run.start, run.stop)
        grad_out, out, lse = (x[part] for x in tensors)
        targets = [x[part] for x in gradients]
        reference.backward(_of_run(problem, run), grad_out, out, lse, targets)


def _others(problem: AttentionProblem, own: tuple[Run, ...]) -> list[Run]:
    return [run for run in runs_of(problem.seqlens) if run not in own]


def _in_place(problem: AttentionProblem) -> AttentionProblem:
    q, k, v = problem[:3]
    return problem._replace(q=in_place(q), k=in_place(k), v=in_place(v))


def view(x: Tensor) -> tuple[int, int, int]:
    """[tokens, heads, head_dim] as the core takes it."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def packed(problem: AttentionProblem, runs: tuple[Run, ...]) -> Any:
    """A problem as the core takes it."""
    q, k, v, _, scale = problem
    numbers = [number for run in runs for number in run]
    parts = (view(q), view(k), view(v))
    return _C.AttentionProblem(*parts, numbers, *q.shape, DTYPE_CODES[q.dtype], scale)


def _of_run(problem: AttentionProblem, run: Run) -> AttentionProblem:
    q, k, v = (x[run.start : run.stop] for x in problem[:3])
    return AttentionProblem(q, k, v, [run.length] * run.n_sequences, problem.scale)
