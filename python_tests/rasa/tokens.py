"""Patch tokens with planted positions, for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast.rasa.patch_tokens import CachedFeatures
from franca_fast.rasa.positions import patch_positions

GRID = (5, 6)


def planted(
    n: int = 128, width: int = 32, *, seed: int = 0, strength: float = 3.0
) -> tuple[CachedFeatures, Tensor]:
    """Noise plus row and column along two directions; and those, orthonormal [2, d]."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(
        torch.randn(width, 2, generator=torch.Generator().manual_seed(7))
    ).Q.T
    positions = patch_positions(GRID).view(*GRID, 2) - 0.5
    noise = torch.randn(n, *GRID, width, generator=generator)
    return CachedFeatures(noise + strength * positions @ directions), directions


def shares_of(directions: Tensor, basis: Tensor) -> Tensor:
    """Lengths of the projections of unit vectors [k, d] onto the span of an orthonormal basis."""
    return (directions.double() @ basis.double().T).norm(dim=1)
