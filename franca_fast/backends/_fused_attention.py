"""What the fused attention kernels have in common: which runs they take and what they are given.

Compiled and Triton kernels read and write [tokens, heads, head_dim] in place, for a part of the
runs of a batch; PyTorch has the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from franca_fast.backends import registry
from franca_fast.backends.choices import OWN, path, table
from franca_fast.backends.torch import varlen_attention as reference
from franca_fast.backends.torch.varlen_attention import Run, runs_of

HEAD_DIMS = (64, 128)
_ALIGNMENT = 16  # bytes

# forward(q, k, v, runs, scale, out, lse) and
# backward(grad_out, q, k, v, out, lse, runs, scale, gradients) of one backend.
Kernel = Callable[..., None]


def in_place(x: Tensor) -> Tensor:
    """The tensor itself when every head starts at a multiple of 16 bytes, otherwise a copy."""
    step = _ALIGNMENT // x.element_size()
    token, head, element = x.stride()
    if element == 1 and token % step == 0 and head % step == 0 and x.data_ptr() % _ALIGNMENT == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _split(q: Tensor, seqlens: list[int], backend: str) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Runs for our kernels and runs for PyTorch's."""
    runs = runs_of(seqlens)
    if q.shape[2] not in HEAD_DIMS or q.dtype not in (torch.bfloat16, torch.float16):
        return (), runs
    own = own_runs(runs, q, backend)
    return own, tuple(run for run in runs if run not in own)


def own_runs(runs: tuple[Run, ...], like: Tensor, backend: str) -> tuple[Run, ...]:
    """The runs that the kernels of `backend` take; the others are PyTorch's.

    A backend that was asked for runs all lengths itself.
    """
    if registry.is_requested(backend) or not like.is_cuda:
        return runs
    return _own_runs(runs, torch.cuda.get_device_capability(like.device), like.shape[2], path())


@functools.lru_cache(maxsize=256)
def _own_runs(
    runs: tuple[Run, ...], capability: tuple[int, int], head_dim: int, file: str
) -> tuple[Run, ...]:
    kernels = table(file).attention_kernel
    return tuple(run for run in runs if kernels(capability, head_dim, run.length) == OWN)


def forward(
    kernel: Kernel,
    backend: str,
    tensors: tuple[Tensor, Tensor, Tensor],
    seqlens: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, head_dim] and log-sum-exp [tokens, heads]."""
    q, k, v = tensors
    own, rest = _split(q, seqlens, backend)
    if not own:
        return reference.forward(q, k, v, seqlens, scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    kernel(in_place(q), in_place(k), in_place(v), own, scale, out, lse)
    for run in rest:
        part = slice(run.start, run.stop)
        theirs = reference.forward(q[part], k[part], v[part], _lengths(run), scale)
        out[part], lse[part] = theirs
    return out, lse


def backward(
    kernel: Kernel,
    backend: str,
    tensors: tuple[Tensor, ...],
    seqlens: list[int],
    scale: float,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients; `tensors` are grad_out, q, k, v, out and lse."""
    own, rest = _split(tensors[1], seqlens, backend)
    if own:
        aligned = [in_place(x) for x in tensors[:5]]
        kernel(*aligned, tensors[5].contiguous(), own, scale, gradients)
    dq, dk, dv = gradients
    for run in rest:
        part = slice(run.start, run.stop)
        grad, q, k, v, out, lse = (x[part] for x in tensors)
        targets = (dq[part], dk[part], dv[part])
        reference.backward(grad, q, k, v, out, lse, _lengths(run), scale, targets)


def _lengths(run: Run) -> list[int]:
    return [run.length] * run.n_sequences
