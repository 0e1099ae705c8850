"""Scores of weight-normalised prototypes in plain PyTorch: products, and equations as written."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast.backends.contracts import Scores
from franca_fast.backends.registry import choose
from franca_fast.backends.torch.prototype_scores import scaled_product


def normalized(v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mul(v, _scale(v, g)[:, None], out=v.new_empty(v.shape, dtype=dtype))


def gradients(
    dprototypes: Tensor, dscales: Tensor | None, v: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    norm, scale = _norm(v), _scale(v, g)
    dv = dprototypes.to(norm.dtype)
    if dscales is None:
        dscales = torch.linalg.vecdot(dv, v.to(norm.dtype))
        dv = dv * scale[:, None]
    dg = dscales / norm
    return (dv - (dg * scale / norm)[:, None] * v).to(v.dtype), dg.to(g.dtype)


def forward(features: Tensor, v: Tensor, g: Tensor, given: Tensor | None) -> Tensor:
    """The same on every device: `prototype_scores` applies scales where that costs least."""
    factors = (v, _scale(v, g)) if given is None else (given,)
    scores = Scores([features], *([factor] for factor in factors))
    return choose("prototype_scores", features).forward(scores)[0]


def backward(
    grad: Tensor, features: Tensor, v: Tensor, g: Tensor, given: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dw = products(grad, features, v, g, given)
    return dx, *gradients(dw, None, v, g)


def products(
    grad: Tensor, features: Tensor, v: Tensor, g: Tensor, given: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the features and of the normalised prototypes."""
    dx = scaled_product(grad, _scale(v, g), v) if given is None else grad @ given
    return dx, grad.t() @ features


def _norm(v: Tensor) -> Tensor:
    """|v| in float32 at least."""
    return torch.linalg.vector_norm(v, dim=1, dtype=torch.promote_types(v.dtype, torch.float32))


def _scale(v: Tensor, g: Tensor) -> Tensor:
    norm = _norm(v)
    return g.to(norm.dtype) / norm
