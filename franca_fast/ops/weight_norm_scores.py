"""Scores of features against weight-normalised prototypes (arXiv 1602.07868), of one head.

With lengths g[k] and directions v[k] / |v[k]|,

    w[k] = g[k] v[k] / |v[k]|             s[n, k] = <x[n], w[k]>
    d x[n] = sum_k ds[n, k] w[k]          d w[k] = sum_n ds[n, k] x[n]
    d g[k] = <d w[k], v[k]> / |v[k]|
    d v[k] = g[k] / |v[k]| (d w[k] - <d w[k], v[k]> / |v[k]|^2 v[k])

so what comes on top of the three products is one pass over the prototypes, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from franca_fast.backends import choose
from franca_fast.backends.contracts import WeightNormScores
from franca_fast.errors import InputError
from franca_fast.ops import _checks
from franca_fast.ops._library import define


def weight_norm_scores(
    features: Tensor, v: Tensor, g: Tensor, *, normalized: Tensor | None = None
) -> Tensor:
    """Scores g[k] <x[n], v[k]> / |v[k]|, differentiable in x, v and g.

    Under autocast the features are cast to its dtype, and the prototypes are rounded to the dtype
    of the features once, after they are normalised; the gradients of v and g are not rounded to it.

    Args:
        features: x, [N, C].
        v: Prototypes before they are normalised, [K, C].
        g: Their lengths, [K], of the dtype of v.
        normalized: What `normalized_prototypes` gave for this v and g in the dtype of the features,
            where several calls are to share it. A constant: the gradients go to v and g. Must not
            be given where v is of the dtype of the features.

    Returns:
        [N, K], in the dtype of the features.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch, franca_fast as ff
        >>> x, v, g = torch.randn(6, 16), torch.randn(8, 16, requires_grad=True), torch.ones(8)
        >>> ff.ops.weight_norm_scores(x, v, g).sum().backward()
        >>> v.grad.shape
        torch.Size([8, 16])
    """
    x, v, g = _check(features, v, g)
    if normalized is not None:
        _check_normalized(normalized, v, x.dtype)
    elif v.dtype != x.dtype:
        normalized = _normalize(v.detach(), g.detach(), x.dtype)
    return _scores(x, v, g, normalized)


def normalized_prototypes(v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """Prototypes g[k] v[k] / |v[k]|, [K, C], rounded once to a dtype; without gradient.

    Args:
        v: [K, C].
        g: [K].
        dtype: Of the result.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch
        >>> from franca_fast.ops import normalized_prototypes
        >>> normalized_prototypes(torch.tensor([[3.0, 4.0]]), torch.ones(1), torch.float32)
        tensor([[0.6000, 0.8000]])
    """
    _check_prototypes(v, g)
    return _normalize(v.detach(), g.detach(), dtype)


def streamed_prototypes(
    v: Tensor, g: Tensor, normalized: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What streamed `Scores` take of weight-normalised prototypes, differentiable in v and g.

    Args:
        v: [K, C].
        g: [K].
        normalized: What `normalized_prototypes` gave, where scores are of another dtype than v.

    Returns:
        Prototypes [K, C] that share the memory of v, or of `normalized`; and scales [K] in float32
        at least, g / |v| or 1.
    """
    _check_prototypes(v, g)
    if normalized is not None:
        _check_normalized(normalized, v, normalized.dtype)
    prototypes, scales = _Streamed.apply(v, g, normalized)
    return prototypes, scales


def _check(features: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _check_prototypes(v, g)
    (x,) = _checks.matrices_of_heads("features", [features])
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    _checks.same_columns("v", [v], "features", [x])
    if v.device != x.device:
        raise InputError(f"v: on {v.device}; accepted: as features, on {x.device}")
    return x, v, g


def _check_prototypes(v: Tensor, g: Tensor) -> None:
    _checks.matrices_of_heads("v", [v])
    _checks.as_tensor("g", g, f"a tensor [{v.shape[0]}]")
    if g.shape != v.shape[:1]:
        raise InputError(f"g: shape {tuple(g.shape)}; accepted: {tuple(v.shape[:1])}")
    _checks.same_kind("g", g, "v", v)


def _check_normalized(normalized: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    given = _checks.as_tensor("normalized", normalized, "a tensor [K, C], or None")
    if v.dtype == dtype or given.dtype != dtype or given.shape != v.shape:
        raise InputError(
            f"normalized: {_checks.described(given)}; accepted: None where v has the dtype of the "
            f"features, else {tuple(v.shape)} in theirs, {dtype}"
        )


class _Streamed(torch.autograd.Function):
    """Two results with one gradient: by themselves each would go over v once, and a sum again."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, g: Tensor, normalized: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(v, g)
        ctx.scaled = normalized is not None
        if normalized is not None:
            return normalized.view_as(normalized), _ones(v)
        return v.view_as(v), _scales(v, g)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dprototypes: Tensor, dscales: Tensor) -> tuple[Tensor, Tensor, None]:
        v, g = ctx.saved_tensors
        # Scales of 1 are constants.
        dv, dg = _gradients(dprototypes, None if ctx.scaled else dscales, v, g)
        return dv, dg, None


def _ones(v: Tensor) -> Tensor:
    return v.new_ones(v.shape[:1], dtype=torch.promote_types(v.dtype, torch.float32))


def _scales(v: Tensor, g: Tensor) -> Tensor:
    precise = torch.promote_types(v.dtype, torch.float32)
    return g.to(precise) / torch.linalg.vector_norm(v, dim=1, dtype=precise)


def _kernel(v: Tensor, features: Tensor) -> WeightNormScores:
    """Of a backend that reads both."""
    return choose("weight_norm_scores", v if v.dtype == torch.float64 else features)


def _backward_impl(
    grad: Tensor, x: Tensor, v: Tensor, g: Tensor, normalized: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernel(v, x).backward(grad, x, v, g, normalized)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_scores_backward(grad, *ctx.saved_tensors), None


_normalize = define(
    "normalized_prototypes(Tensor v, Tensor g, ScalarType dtype) -> Tensor",
    lambda v, g, dtype: _kernel(v, v.new_empty(0, dtype=dtype)).normalized(v, g, dtype),
    lambda v, g, dtype: v.new_empty(v.shape, dtype=dtype),
)
_gradients = define(
    "weight_norm_gradients(Tensor dprototypes, Tensor? dscales, Tensor v, Tensor g) "
    "-> (Tensor, Tensor)",
    lambda dprototypes, dscales, v, g: _kernel(v, dprototypes).gradients(
        dprototypes, dscales, v, g
    ),
    lambda dprototypes, dscales, v, g: (v.new_empty(v.shape), g.new_empty(g.shape)),
)
_scores_backward = define(
    "weight_norm_scores_backward(Tensor grad, Tensor features, Tensor v, Tensor g, "
    "Tensor? normalized) -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    lambda grad, *inputs: tuple(m.new_empty(m.shape) for m in inputs[:3]),
)
_scores = define(
    "weight_norm_scores(Tensor features, Tensor v, Tensor g, Tensor? normalized) -> Tensor",
    lambda x, v, g, normalized: _kernel(v, x).forward(x, v, g, normalized),
    lambda x, v, g, normalized: x.new_empty((x.shape[0], v.shape[0])),
    backward=_autograd_backward,
    setup_context=_setup_context,
)
