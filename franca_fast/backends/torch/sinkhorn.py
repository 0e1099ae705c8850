"""Sinkhorn-Knopp half-steps in plain PyTorch, one head and one block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from franca_fast.backends._sinkhorn_iteration import balance
from franca_fast.backends.contracts import Scores, potential_dtype

# Rows are taken in blocks of about this many scores, so that the temporaries stay in cache and
# the extra memory does not grow with the batch.
_BLOCK_ELEMENTS = 1 << 20


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices that cut `n_rows` into blocks of about `_BLOCK_ELEMENTS` scores."""
    step = max(1, _BLOCK_ELEMENTS // max(1, n_columns))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def potentials(
    scores: Scores, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    return balance(column_logsumexp, row_step, scores, temperature, n_iterations, n_valid)


def column_logsumexp(scores: Scores, temperature: float, n_valid: int) -> tuple[Tensor, Tensor]:
    maxima, totals = [], []
    for z in scores.values:
        dtype = potential_dtype(z)
        maximum = z.new_full((z.shape[1],), float("-inf"), dtype=dtype)
        for block in row_blocks(n_valid, z.shape[1]):
            maximum = torch.maximum(maximum, z[block].amax(dim=0).to(dtype) / temperature)
        total = torch.zeros_like(maximum)
        for block in row_blocks(n_valid, z.shape[1]):
            total += (z[block].to(dtype) / temperature).sub_(maximum).exp_().sum(dim=0)
        maxima.append(maximum)
        totals.append(total)
    return torch.cat(maxima), torch.cat(totals)


def row_step(
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    row_potentials = prototype_potentials.new_full(
        (len(scores.values), scores.n_rows), float("-inf")
    )
    mass = torch.zeros_like(prototype_potentials) if with_mass else None
    start = 0
    for head, z in enumerate(scores.values):
        stop = start + z.shape[1]
        a = prototype_potentials[start:stop]
        for block in row_blocks(n_valid, z.shape[1]):
            x = (z[block].to(a.dtype) / temperature).add_(a)
            maximum = x.amax(dim=1, keepdim=True)
            x.sub_(maximum).exp_()
            total = x.sum(dim=1, keepdim=True)
            row_potentials[head, block] = -(maximum + total.log()).squeeze(1)
            if mass is not None:
                mass[start:stop] += x.div_(total).sum(dim=0)
        start = stop
    return row_potentials, mass


def assignments(
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int
) -> list[Tensor]:
    out = []
    for z, a in zip(scores.values, prototype_potentials.split(scores.columns), strict=True):
        q = torch.zeros(z.shape, dtype=a.dtype, device=z.device)
        for block in row_blocks(n_valid, z.shape[1]):
            x = (z[block].to(a.dtype) / temperature).add_(a)
            torch.softmax(x, dim=1, out=q[block])
        out.append(q)
    return out
