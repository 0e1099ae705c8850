"""Nested prototype scores in plain PyTorch: one matrix product for each head."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    features: list[Tensor], prototypes: list[Tensor], scales: list[Tensor] | None
) -> list[Tensor]:
    """scale[k] * <x[n], v[k]>, [N, K] for each head, in the dtype of the features."""
    if scales is None:
        return [x @ v.t() for x, v in zip(features, prototypes, strict=True)]
    triples = zip(features, prototypes, scales, strict=True)
    return [_scores(x, v, scale) for x, v, scale in triples]


def _scores(x: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """Scales whichever is smaller, the scores or the prototypes."""
    if x.shape[0] <= v.shape[1]:
        return (x @ v.t()).mul_(scale)
    return x @ _rescaled(v, scale.unsqueeze(1)).t()


def _rescaled(matrix: Tensor, scale: Tensor) -> Tensor:
    """A matrix times float32 factors, rounded once, in its own dtype and in one pass."""
    return torch.mul(matrix, scale, out=torch.empty_like(matrix))


def backward(
    grads: list[Tensor],
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor] | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
    """Gradients of the features, the prototypes and the scales."""
    if scales is None:
        pairs = zip(grads, features, prototypes, strict=True)
        products = [(g @ v, g.t() @ x) for g, x, v in pairs]
        return [dx for dx, _ in products], [dv for _, dv in products], None
    dfeatures, dprototypes, dscales = [], [], []
    for g, x, v, scale in zip(grads, features, prototypes, scales, strict=True):
        dfeatures.append(_scaled_product(g, scale, v))
        unscaled = (g.t() @ x).to(scale.dtype)
        dscales.append(torch.linalg.vecdot(unscaled, v.to(scale.dtype)))
        dprototypes.append(unscaled.mul_(scale.unsqueeze(1)).to(v.dtype))
    return dfeatures, dprototypes, dscales


def _scaled_product(g: Tensor, scale: Tensor, v: Tensor) -> Tensor:
    """(g * scale) @ v, scaling whichever of the two factors is smaller."""
    if g.numel() <= v.numel():
        return _rescaled(g, scale) @ v
    return g @ _rescaled(v, scale.unsqueeze(1))
