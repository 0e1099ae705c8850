"""Sinkhorn-Knopp half-steps as CUDA kernels, and all iterations at once."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import Heads, pack_heads, vector
from franca_fast.backends.contracts import Scores
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace


def _pack(scores: Scores) -> tuple[Heads, torch.device]:
    device = scores.values[0].device
    return pack_heads(scores.values, "scores", device), device


def column_logsumexp(scores: Scores, temperature: float, n_valid: int) -> tuple[Tensor, Tensor]:
    heads, device = _pack(scores)
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
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    heads, device = _pack(scores)
    a = vector(
        prototype_potentials, "prototype_potentials", (sum(heads.columns),), torch.float32, device
    )
    b = torch.empty(len(heads.columns), heads.n_rows, dtype=torch.float32, device=device)
    mass = torch.empty_like(a) if with_mass else None
    view = (heads.numbers, heads.n_rows, heads.dtype)
    with on_device_of(b):
        memory = workspace(_C.cuda.row_step_workspace(*view, n_valid, with_mass), device)
        _C.cuda.row_step(
            *view,
            temperature,
            a.data_ptr(),
            n_valid,
            b.data_ptr(),
            0 if mass is None else mass.data_ptr(),
            memory.data_ptr(),
            memory.numel(),
            stream_of(b),
        )
    return b, mass


def assignments(
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int
) -> list[Tensor]:
    heads, device = _pack(scores)
    a = vector(
        prototype_potentials, "prototype_potentials", (sum(heads.columns),), torch.float32, device
    )
    out = [
        torch.empty(heads.n_rows, width, dtype=torch.float32, device=device)
        for width in heads.columns
    ]
    view = (heads.numbers, heads.n_rows, heads.dtype)
    with on_device_of(a):
        memory = workspace(_C.cuda.assignments_workspace(*view), device)
        _C.cuda.assignments(
            *view,
            temperature,
            a.data_ptr(),
            n_valid,
            [q.data_ptr() for q in out],
            memory.data_ptr(),
            memory.numel(),
            stream_of(a),
        )
    return out


def potentials(
    scores: Scores, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    heads, device = _pack(scores)
    view = (heads.numbers, heads.n_rows, heads.dtype)
    a = torch.empty(sum(heads.columns), dtype=torch.float32, device=device)
    b = torch.empty(len(heads.columns), heads.n_rows, dtype=torch.float32, device=device)
    with on_device_of(b):
        memory = workspace(_C.cuda.potentials_workspace(*view, n_valid), device)
        _C.cuda.potentials(
            *view,
            temperature,
            n_iterations,
            n_valid,
            a.data_ptr(),
            b.data_ptr(),
            memory.data_ptr(),
            memory.numel(),
            stream_of(b),
        )
    return a, b
