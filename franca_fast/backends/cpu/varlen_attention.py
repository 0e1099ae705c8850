"""Attention over packed sequences in the compiled core.

PyTorch's kernel is made of calls of matrix products and, in 16 bits, of casts, which take most of
its time where crops have few tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends import _fused_attention
from franca_fast.backends._fused_attention import packed, view
from franca_fast.backends.contracts import AttentionProblem
from franca_fast.backends.registry import is_requested
from franca_fast.backends.torch.varlen_attention import Run, runs_of
from franca_fast.processor import instructions

# With matrix units, PyTorch's kernel takes products of 16 bits that long to them; not measured.
_LONGEST_WITH_MATRIX_UNITS = 64


def forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    return _fused_attention.forward(_forward, _own_runs(problem), problem)


def backward(
    problem: AttentionProblem,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    own = _own_runs(problem)
    _fused_attention.backward(_backward, own, problem, (grad_out, out, lse), gradients)


def _own_runs(problem: AttentionProblem) -> tuple[Run, ...]:
    runs = runs_of(problem.seqlens)
    if problem.q.dtype == torch.float32 or is_requested("cpu") or not _has_matrix_units():
        return runs
    return tuple(run for run in runs if run.length <= _LONGEST_WITH_MATRIX_UNITS)


@functools.cache
def _has_matrix_units() -> bool:
    return "amx_bf16" in instructions()


def _forward(problem: AttentionProblem, runs: tuple[Run, ...], out: Tensor, lse: Tensor) -> None:
    arguments = packed(problem, runs)
    _C.attention_forward(arguments, view(out), lse.data_ptr(), torch.get_num_threads())


def _backward(
    problem: AttentionProblem,
    runs: tuple[Run, ...],
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    arguments = packed(problem, runs)
    targets = [view(x) for x in gradients]
    _C.attention_backward(
        arguments, view(grad_out), lse.data_ptr(), *targets, torch.get_num_threads()
    )
