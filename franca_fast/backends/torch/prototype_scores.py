"""Nested prototype scores in plain PyTorch: one matrix product for each head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from franca_fast.backends.contracts import Scores


def forward(scores: Scores) -> list[Tensor]:
    if not scores.scales:
        return [x @ v.t() for x, v in zip(scores.values, scores.prototypes, strict=True)]
    return [_scaled(x, v, scale) for x, v, scale in zip(*scores, strict=True)]


def _scaled(x: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """Scales whichever is smaller, the scores or the prototypes."""
    if x.shape[0] <= v.shape[1]:
        return (x @ v.t()).mul_(scale)
    return x @ _rescaled(v, scale.unsqueeze(1)).t()


def _rescaled(matrix: Tensor, scale: Tensor) -> Tensor:
    """A matrix times float32 factors, rounded once, in its own dtype and in one pass."""
    return torch.mul(matrix, scale, out=torch.empty_like(matrix))


def backward(scores: Scores, gradients: Sequence[Tensor]) -> Scores:
    if not scores.scales:
        triples = zip(gradients, scores.values, scores.prototypes, strict=True)
        products = [(g @ v, g.t() @ x) for g, x, v in triples]
        return Scores([dx for dx, _ in products], [dv for _, dv in products])
    dfeatures, dprototypes, dscales = [], [], []
    for g, x, v, scale in zip(gradients, *scores, strict=True):
        dfeatures.append(scaled_product(g, scale, v))
        unscaled = (g.t() @ x).to(scale.dtype)
        dscales.append(torch.linalg.vecdot(unscaled, v.to(scale.dtype)))
        dprototypes.append(unscaled.mul_(scale.unsqueeze(1)).to(v.dtype))
    return Scores(dfeatures, dprototypes, dscales)


def scaled_product(g: Tensor, scale: Tensor, v: Tensor) -> Tensor:
    """(g * scale) @ v, scaling whichever of the two factors is smaller."""
    if g.numel() <= v.numel():
        return _rescaled(g, scale) @ v
    return g @ _rescaled(v, scale.unsqueeze(1))
