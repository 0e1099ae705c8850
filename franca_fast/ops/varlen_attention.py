"""Attention within each sequence of a packed batch of sequences of different lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast.backends import choose
from franca_fast.backends.contracts import AttentionProblem
from franca_fast.errors import InputError
from franca_fast.ops import _checks
from franca_fast.ops._library import define


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, seqlens: Sequence[int], scale: float | None = None
) -> Tensor:
    """softmax(scale * q k^T) v within each packed sequence, not causal; differentiable.

    On GPUs, bfloat16 and float16 with 64 or 128 elements a head run on kernels whose tiles are cut
    to the lengths, or on PyTorch's where those are faster on the card
    (`franca_fast.backends.choices`). A backend that `use_backend` asks for must be the
    same in forward and backward.

    Args:
        q: Queries, [tokens, heads, head_dim], the sequences one after another. Any strides; read in
            place where heads start at multiples of 16 bytes, as in a projection's output.
        k: Keys, same shape and dtype.
        v: Values, same shape and dtype.
        seqlens: Length of each sequence, at least 1; they sum to the number of tokens.
        scale: Factor of the scores, from 1e-6 to 1e6. Default: 1 / sqrt(head_dim).

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
    _check_tensor("q", q, 3, "[tokens, heads, head_dim]")
    for name, x in (("k", k), ("v", v)):
        _check_tensor(name, x, 3, "[tokens, heads, head_dim]")
        _checks.same_kind(name, x, "q", q)
        if x.shape != q.shape:
            raise InputError(f"{name}: shape {tuple(x.shape)}; accepted: as q, {tuple(q.shape)}")
    lengths = _check_seqlens(seqlens, q.shape[0])
    out, _ = _attention(q, k, v, _runs(lengths), _check_scale(scale, q.shape[2]))
    return out


def varlen_attention_qkv(qkv: Tensor, seqlens: Sequence[int], scale: float | None = None) -> Tensor:
    """`varlen_attention` of one tensor with queries, keys and values, as a projection gives them.

    The gradient is one tensor as well, which saves the copy that puts three together.

    Args:
        qkv: [tokens, 3, heads, head_dim]: queries, keys and values.
        seqlens: Length of each sequence, at least 1; they sum to the number of tokens.
        scale: Factor of the scores, from 1e-6 to 1e6. Default: 1 / sqrt(head_dim).

    Returns:
        [tokens, heads, head_dim], contiguous, in the dtype of qkv.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch, franca_fast as ff
        >>> qkv = torch.randn(17 + 5 + 5, 3, 4, 16)
        >>> ff.ops.varlen_attention_qkv(qkv, [17, 5, 5]).shape
        torch.Size([27, 4, 16])
    """
    _check_tensor("qkv", qkv, 4, "[tokens, 3, heads, head_dim]")
    if qkv.shape[1] != 3:
        raise InputError(f"qkv: shape {tuple(qkv.shape)}; accepted: [tokens, 3, heads, head_dim]")
    lengths = _check_seqlens(seqlens, qkv.shape[0])
    out, _ = _attention_qkv(qkv, _runs(lengths), _check_scale(scale, qkv.shape[3]))
    return out


def _check_tensor(name: str, x: Any, n_dims: int, shape: str) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: {type(x).__name__}; accepted: a tensor {shape}")
    if x.dim() != n_dims or x.shape[-1] < 1 or x.shape[-2] < 1:
        raise InputError(
            f"{name}: shape {tuple(x.shape)}; accepted: {shape}, at least one head and one element"
        )
    if x.dtype not in _checks.FLOATING:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _checks.FLOATING)
        raise InputError(f"{name}: dtype {x.dtype}; accepted: {accepted}")


def _check_seqlens(seqlens: Any, n_tokens: int) -> list[int]:
    if not isinstance(seqlens, Sequence) or isinstance(seqlens, str):
        raise InputError(
            f"seqlens: {type(seqlens).__name__}; accepted: a list of integers on the host "
            f"(tolist() makes one of a tensor or an array)"
        )
    lengths = list(seqlens)
    # There may be hundreds: each is looked at only where one is wrong, or traced.
    if set(map(type, lengths)) != {int} or min(lengths) < 1:
        for i, length in enumerate(lengths):
            whole = isinstance(length, (int, torch.SymInt)) and not isinstance(length, bool)
            if not whole or length < 1:
                raise InputError(f"seqlens[{i}]: {length!r}; accepted: an integer >= 1")
    if not lengths or sum(lengths) != n_tokens:
        raise InputError(
            f"seqlens: {_shortened(lengths)} with sum {sum(lengths)}; "
            f"accepted: lengths >= 1 that sum to {n_tokens}, the number of tokens"
        )
    return lengths


def _check_scale(scale: Any, head_dim: int) -> float:
    if scale is None:
        return float(head_dim) ** -0.5
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 1e-6 <= scale <= 1e6:
        raise InputError(f"scale: {scale!r}; accepted: None or a number from 1e-6 to 1e6")
    return float(scale)


def _shortened(lengths: list[int]) -> str:
    if len(lengths) <= 8:
        return str(lengths)
    return f"[{', '.join(map(str, lengths[:8]))}, ...] ({len(lengths)} sequences)"


# What goes through the operators below: q, k, v, runs and scale; the results are the output
# [tokens, heads, head_dim] and the softmax's log-sum-exp [tokens, heads]. Runs are the lengths,
# each followed by how many sequences in a row have it: hundreds of lengths would cost PyTorch's
# dispatcher as much time as all the rest of a call.


def _runs(lengths: list[int]) -> list[int]:
    groups = ((length, len(list(group))) for length, group in itertools.groupby(lengths))
    return [number for group in groups for number in group]


def _lengths(runs: list[int]) -> list[int]:
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return [length for length, n_sequences in pairs for _ in range(n_sequences)]


def _forward_impl(
    q: Tensor, k: Tensor, v: Tensor, runs: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    problem = AttentionProblem(q, k, v, _lengths(runs), scale)
    return choose("varlen_attention", q).forward(problem)


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, runs: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=statistics)


def _backward_impl(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    runs: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = (q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape))
    problem = AttentionProblem(q, k, v, _lengths(runs), scale)
    choose("varlen_attention", q).backward(problem, grad_out, out, lse, gradients)
    return gradients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.runs, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)


def _autograd_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    dq, dk, dv = _attention_backward(grad_out, *ctx.saved_tensors, ctx.runs, ctx.scale)
    return dq, dk, dv, None, None


_attention_backward = define(
    "varlen_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
    "Tensor lse, SymInt[] runs, float scale) -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    lambda grad_out, q, k, v, *rest: tuple(x.new_empty(x.shape) for x in (q, k, v)),
)
_attention = define(
    "varlen_attention(Tensor q, Tensor k, Tensor v, SymInt[] runs, float scale) "
    "-> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
    backward=_autograd_backward,
    setup_context=_setup_context,
)


def _qkv_forward_impl(qkv: Tensor, runs: list[int], scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(1)
    return _forward_impl(q, k, v, runs, scale)


def _qkv_forward_fake(qkv: Tensor, runs: list[int], scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(1)
    return _forward_fake(q, k, v, runs, scale)


def _qkv_backward_impl(
    grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, runs: list[int], scale: float
) -> Tensor:
    gradient = qkv.new_empty(qkv.shape)
    q, k, v = qkv.unbind(1)
    problem = AttentionProblem(q, k, v, _lengths(runs), scale)
    choose("varlen_attention", qkv).backward(problem, grad_out, out, lse, gradient.unbind(1))
    return gradient


def _setup_qkv_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.runs, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output)


def _autograd_qkv_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    gradient = _attention_qkv_backward(grad_out, *ctx.saved_tensors, ctx.runs, ctx.scale)
    return gradient, None, None


_attention_qkv_backward = define(
    "varlen_attention_qkv_backward(Tensor grad_out, Tensor qkv, Tensor out, Tensor lse, "
    "SymInt[] runs, float scale) -> Tensor",
    _qkv_backward_impl,
    lambda grad_out, qkv, *rest: qkv.new_empty(qkv.shape),
)
_attention_qkv = define(
    "varlen_attention_qkv(Tensor qkv, SymInt[] runs, float scale) -> (Tensor, Tensor)",
    _qkv_forward_impl,
    _qkv_forward_fake,
    backward=_autograd_qkv_backward,
    setup_context=_setup_qkv_context,
)
