"""Attention over packed sequences with PyTorch's own kernels.

Sequences of equal length that follow each other form a run, and a run is one dense call: packed
crops have one run for each crop size.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from franca_fast.backends.contracts import AttentionProblem


class Run(NamedTuple):
    """Sequences of one length that follow each other.

    Attributes:
        start: First token.
        n_sequences: Number of sequences.
        length: Tokens of each.
    """

    start: int
    n_sequences: int
    length: int

    @property
    def stop(self) -> int:
        """The token after the last one."""
        return self.start + self.n_sequences * self.length

    def of(self, packed: Tensor) -> Tensor:
        """View of the run's tokens, [tokens, heads, dim] -> [n_sequences, heads, length, dim]."""
        tokens = packed[self.start : self.stop]
        return tokens.unflatten(0, (self.n_sequences, self.length)).transpose(1, 2)


def runs_of(seqlens: Sequence[int]) -> tuple[Run, ...]:
    """The runs of a packed batch. Few batches differ in their lengths, so they are remembered."""
    return _runs_of(tuple(seqlens))


@functools.lru_cache(maxsize=256)
def _runs_of(seqlens: tuple[int, ...]) -> tuple[Run, ...]:
    runs, start = [], 0
    for length, group in itertools.groupby(seqlens):
        runs.append(Run(start, len(list(group)), length))
        start = runs[-1].stop
    return tuple(runs)


def _adjacent(x: Tensor) -> Tensor:
    """The tensor with adjacent elements of a head, which PyTorch's CPU kernel takes for granted."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _pack(runs: list[Tensor]) -> Tensor:
    """Inverse of `Run.of` for all runs; free of copies for one run."""
    flat = [run.transpose(1, 2).flatten(0, 1) for run in runs]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    # The CPU kernel gives the log-sum-exp, which its backward needs. Elsewhere the backward
    # recomputes through autograd; the second result is then not a number, so that another backend's
    # backward, which would need it, cannot go wrong unnoticed.
    q, k, v, seqlens, scale = problem
    outputs, statistics = [], []
    for run in runs_of(seqlens):
        query, key, value = run.of(q), run.of(k), run.of(v)
        if q.device.type == "cpu":
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *map(_adjacent, (query, key, value)), scale=scale
            )
        else:
            out = F.scaled_dot_product_attention(query, key, value, scale=scale)
            dtype = torch.promote_types(q.dtype, torch.float32)
            lse = torch.full(query.shape[:3], math.nan, dtype=dtype, device=q.device)
        outputs.append(out)
        statistics.append(lse.unsqueeze(-1))
    return _pack(outputs).contiguous(), _pack(statistics).squeeze(-1).contiguous()


def backward(
    problem: AttentionProblem,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    q, k, v, seqlens, scale = problem
    for run in runs_of(seqlens):
        query, key, value, grad = run.of(q), run.of(k), run.of(v), run.of(grad_out)
        if q.device.type == "cpu":
            statistics = run.of(lse.unsqueeze(-1)).squeeze(-1)
            parts = _on_cpu(grad, query, key, value, run.of(out), statistics, scale)
        else:
            parts = _recomputed(grad, query, key, value, scale)
        for target, part in zip(gradients, parts, strict=True):
            run.of(target).copy_(part)


def _on_cpu(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    statistics: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # In bfloat16 and float16 PyTorch's kernel takes several times as long as in float32 on short
    # sequences, far more than the casts cost.
    dtype = torch.promote_types(query.dtype, torch.float32)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(_adjacent(x.to(dtype)) for x in (grad, query, key, value, out)),
        statistics,
        dropout_p=0.0,
        is_causal=False,
        scale=scale,
    )


def _recomputed(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        query, key, value = (t.detach().requires_grad_() for t in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, scale=scale)
        dq, dk, dv = torch.autograd.grad(out, (query, key, value), grad)
    return dq, dk, dv
