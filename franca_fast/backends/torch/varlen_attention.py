"""Attention over packed sequences with PyTorch's own kernels.

Sequences of equal length that follow each other form a run, and a run is one dense call: packed
crops have one run for each crop size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Run(NamedTuple):
    start: int
    n_sequences: int
    length: int

    def of(self, packed: Tensor) -> Tensor:
        """View of the run's tokens, [tokens, heads, dim] -> [n_sequences, heads, length, dim]."""
        tokens = packed[self.start : self.start + self.n_sequences * self.length]
        return tokens.unflatten(0, (self.n_sequences, self.length)).transpose(1, 2)


def _runs(seqlens: list[int]) -> Iterator[_Run]:
    start = 0
    for length, group in itertools.groupby(seqlens):
        count = len(list(group))
        yield _Run(start, count, length)
        start += count * length


def _pack(runs: list[Tensor]) -> Tensor:
    """Inverse of `_Run.of` for all runs; free of copies for one run."""
    flat = [run.transpose(1, 2).flatten(0, 1) for run in runs]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def forward(
    q: Tensor, k: Tensor, v: Tensor, seqlens: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, dim] and the softmax's log-sum-exp [tokens, heads].

    The CPU kernel gives the log-sum-exp, which its backward needs. Elsewhere the backward
    recomputes through autograd and the second result is zeros that nobody reads.
    """
    outputs, statistics = [], []
    for run in _runs(seqlens):
        query, key, value = run.of(q), run.of(k), run.of(v)
        if q.device.type == "cpu":
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, scale=scale
            )
        else:
            out = F.scaled_dot_product_attention(query, key, value, scale=scale)
            lse = torch.zeros(query.shape[:3], dtype=torch.float32, device=q.device)
        outputs.append(out)
        statistics.append(lse.unsqueeze(-1))
    return _pack(outputs).contiguous(), _pack(statistics).squeeze(-1).contiguous()


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    seqlens: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, [tokens, heads, dim]."""
    gradients: list[tuple[Tensor, Tensor, Tensor]] = []
    for run in _runs(seqlens):
        query, key, value, grad = run.of(q), run.of(k), run.of(v), run.of(grad_out)
        if q.device.type == "cpu":
            statistics = run.of(lse.unsqueeze(-1)).squeeze(-1)
            gradients.append(_on_cpu(grad, query, key, value, run.of(out), statistics, scale))
        else:
            gradients.append(_recomputed(grad, query, key, value, scale))
    dq, dk, dv = (_pack(list(parts)) for parts in zip(*gradients, strict=True))
    return dq, dk, dv


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
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(x.to(dtype) for x in (grad, query, key, value, out)),
        statistics,
        dropout_p=0.0,
        is_causal=False,
        scale=scale,
    )
    return dq.to(query.dtype), dk.to(query.dtype), dv.to(query.dtype)


def _recomputed(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        query, key, value = (t.detach().requires_grad_() for t in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, scale=scale)
        dq, dk, dv = torch.autograd.grad(out, (query, key, value), grad)
    return dq, dk, dv
