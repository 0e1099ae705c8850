"""Attention within each sequence of a packed batch of sequences of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast.backends import choose
from franca_fast.errors import InputError

from . import _checks
from ._library import define


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, seqlens: Sequence[int], scale: float | None = None
) -> Tensor:
    """softmax(scale * q k^T) v within each packed sequence, not causal; differentiable.

    Args:
        q: Queries, [tokens, heads, head_dim], the sequences one after another.
        k: Keys, same shape and dtype.
        v: Values, same shape and dtype.
        seqlens: Length of each sequence, at least 1; they sum to the number of tokens.
        scale: Factor of the scores. Default: 1 / sqrt(head_dim).

    Returns:
        [tokens, heads, head_dim], contiguous, in the dtype of q.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch, franca_fast as ff
        >>> q, k, v = torch.randn(3, 17 + 5 + 5, 4, 16).unbind(0)
        >>> ff.ops.varlen_attention(q, k, v, [17, 5, 5]).shape
        torch.Size([27, 4, 16])
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 3 or x.shape != q.shape:
            raise InputError(
                f"{name}: shape {tuple(x.shape)}; accepted: [tokens, heads, head_dim], "
                f"the same for q, k and v"
            )
        if x.dtype not in _checks.FLOATING or x.dtype != q.dtype or x.device != q.device:
            raise InputError(
                f"{name}: {x.dtype} on {x.device}; accepted: one floating dtype and one device "
                f"for q, k and v (q: {q.dtype} on {q.device})"
            )
    lengths = list(seqlens)
    if not lengths or min(lengths) < 1 or sum(lengths) != q.shape[0]:
        raise InputError(
            f"seqlens: {_shortened(lengths)} with sum {sum(lengths)}; "
            f"accepted: lengths >= 1 that sum to {q.shape[0]}, the number of tokens"
        )
    out, _ = _attention(q, k, v, lengths, q.shape[2] ** -0.5 if scale is None else float(scale))
    return out


def _shortened(lengths: list[int]) -> str:
    if len(lengths) <= 8:
        return str(lengths)
    return f"[{', '.join(map(str, lengths[:8]))}, ...] ({len(lengths)} sequences)"


def _forward_impl(
    q: Tensor, k: Tensor, v: Tensor, seqlens: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    return choose("varlen_attention", q).forward(q, k, v, seqlens, scale)


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, seqlens: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=statistics)


def _backward_impl(grad_out: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return choose("varlen_attention", q).backward(grad_out, q, *rest)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.seqlens, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)


def _autograd_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    dq, dk, dv = _attention_backward(grad_out, *ctx.saved_tensors, ctx.seqlens, ctx.scale)
    return dq, dk, dv, None, None


_attention_backward = define(
    "varlen_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
    "Tensor lse, SymInt[] seqlens, float scale) -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    lambda grad_out, q, k, v, *rest: tuple(x.new_empty(x.shape) for x in (q, k, v)),
)
_attention = define(
    "varlen_attention(Tensor q, Tensor k, Tensor v, SymInt[] seqlens, float scale) "
    "-> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
    backward=_autograd_backward,
    setup_context=_setup_context,
)
