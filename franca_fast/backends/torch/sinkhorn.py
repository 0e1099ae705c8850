"""Sinkhorn-Knopp half-steps in plain PyTorch.

Notation: z = logits [N, K], T = temperature, a = prototype potential [K], b = row potential [N].
Heads are ragged in K; vectors over prototypes are stored for all heads in one buffer [sum K].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows are taken in blocks of about this many logits, so that the temporaries stay in cache and
# the extra memory does not grow with the batch.
_BLOCK_ELEMENTS = 1 << 20


def accumulation_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, float32 for all others."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices that cut `n_rows` into blocks of about `_BLOCK_ELEMENTS` logits."""
    step = max(1, _BLOCK_ELEMENTS // max(1, n_columns))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def column_logsumexp(
    logits: list[Tensor], temperature: float, n_valid: int
) -> tuple[Tensor, Tensor]:
    """Maximum of z/T over the valid rows and sum of exp(z/T - maximum), both [sum K]."""
    maxima, totals = [], []
    for z in logits:
        dtype = accumulation_dtype(z)
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
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    """Row potentials for given prototype potentials and, on request, the mass of each prototype.

    Returns:
        row: [H, N], b[n] = -log sum_k exp(z/T + a[k]); -inf for rows from n_valid on.
        mass: [sum K], sum over valid rows of exp(z/T + a[k] + b[n]), or None.
    """
    n_rows = logits[0].shape[0]
    row = prototype.new_full((len(logits), n_rows), float("-inf"))
    mass = torch.zeros_like(prototype) if with_mass else None
    start = 0
    for head, z in enumerate(logits):
        stop = start + z.shape[1]
        potential = prototype[start:stop]
        for block in row_blocks(n_valid, z.shape[1]):
            x = (z[block].to(potential.dtype) / temperature).add_(potential)
            maximum = x.amax(dim=1, keepdim=True)
            x.sub_(maximum).exp_()
            total = x.sum(dim=1, keepdim=True)
            row[head, block] = -(maximum + total.log()).squeeze(1)
            if mass is not None:
                mass[start:stop] += x.div_(total).sum(dim=0)
        start = stop
    return row, mass


def assignments(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int
) -> list[Tensor]:
    """Softmax over k of z/T + a[k], [N, K] for each head; zero for rows from n_valid on.

    Normalising each row here, instead of adding a stored row potential, makes rows sum to 1
    however large the logits are.
    """
    out = []
    for z, potential in zip(logits, prototype.split([z.shape[1] for z in logits]), strict=True):
        q = torch.zeros(z.shape, dtype=potential.dtype, device=z.device)
        for block in row_blocks(n_valid, z.shape[1]):
            x = (z[block].to(potential.dtype) / temperature).add_(potential)
            torch.softmax(x, dim=1, out=q[block])
        out.append(q)
    return out
