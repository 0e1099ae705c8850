"""Sinkhorn-Knopp half-steps as CUDA kernels.

The functions are those of `backends.torch.sinkhorn`, which says what they compute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import Heads, pack_heads, vector
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace


def _pack(logits: list[Tensor]) -> Heads:
    return pack_heads(logits, "logits", logits[0].device)


def column_logsumexp(
    logits: list[Tensor], temperature: float, n_valid: int
) -> tuple[Tensor, Tensor]:
    """Maximum of z/T over the valid rows and sum of exp(z/T - maximum), both [sum K] float32."""
    heads, device = _pack(logits), logits[0].device
    result = torch.empty(2, sum(heads.columns), dtype=torch.float32, device=device)
    maximum, total = result.unbind(0)
    view = (heads.numbers, heads.n_rows, heads.dtype)
    with on_device_of(result):
        memory = workspace(_C.cuda.column_logsumexp_workspace(*view, n_valid), device)
        _C.cuda.column_logsumexp(
            *view,
            temperature,
            n_valid,
            maximum.data_ptr(),
            total.data_ptr(),
            memory.data_ptr(),
            memory.numel(),
            stream_of(result),
        )
    return maximum, total


def row_step(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    """Row potentials [H, N] for given prototype potentials and, on request, the mass [sum K]."""
    heads, device = _pack(logits), logits[0].device
    prototype = vector(prototype, "prototype", (sum(heads.columns),), torch.float32, device)
    row = torch.empty(len(logits), heads.n_rows, dtype=torch.float32, device=device)
    mass = torch.empty_like(prototype) if with_mass else None
    view = (heads.numbers, heads.n_rows, heads.dtype)
    with on_device_of(row):
        memory = workspace(_C.cuda.row_step_workspace(*view, n_valid, with_mass), device)
        _C.cuda.row_step(
            *view,
            temperature,
            prototype.data_ptr(),
            n_valid,
            row.data_ptr(),
            0 if mass is None else mass.data_ptr(),
            memory.data_ptr(),
            memory.numel(),
            stream_of(row),
        )
    return row, mass


def assignments(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int
) -> list[Tensor]:
    """Softmax over k of z/T + a[k], [N, K] float32 for each head; zero for rows from n_valid on."""
    heads, device = _pack(logits), logits[0].device
    prototype = vector(prototype, "prototype", (sum(heads.columns),), torch.float32, device)
    out = [
        torch.empty(heads.n_rows, width, dtype=torch.float32, device=device)
        for width in heads.columns
    ]
    view = (heads.numbers, heads.n_rows, heads.dtype)
    with on_device_of(prototype):
        memory = workspace(_C.cuda.assignments_workspace(*view), device)
        _C.cuda.assignments(
            *view,
            temperature,
            prototype.data_ptr(),
            n_valid,
            [q.data_ptr() for q in out],
            memory.data_ptr(),
            memory.numel(),
            stream_of(prototype),
        )
    return out


def potentials(
    logits: list[Tensor], temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    """All iterations at once on one device: potentials [sum K] and [H, N]."""
    heads, device = _pack(logits), logits[0].device
    view = (heads.numbers, heads.n_rows, heads.dtype)
    prototype = torch.empty(sum(heads.columns), dtype=torch.float32, device=device)
    row = torch.empty(len(logits), heads.n_rows, dtype=torch.float32, device=device)
    with on_device_of(row):
        memory = workspace(_C.cuda.potentials_workspace(*view, n_valid), device)
        _C.cuda.potentials(
            *view,
            temperature,
            n_iterations,
            n_valid,
            prototype.data_ptr(),
            row.data_ptr(),
            memory.data_ptr(),
            memory.numel(),
            stream_of(row),
        )
    return prototype, row
