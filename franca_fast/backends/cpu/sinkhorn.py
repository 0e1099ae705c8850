"""Sinkhorn-Knopp half-steps in the compiled core.

The functions are those of `backends.torch.sinkhorn`, which says what they compute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import matrix, pack_heads, vector


def potentials(
    logits: list[Tensor], temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor] | None:
    """Potentials [sum K] and [H, N] of all iterations, or None where the passes must do it."""
    heads = pack_heads(logits, "logits")
    threads = torch.get_num_threads()
    shape = (heads.numbers, heads.n_rows, heads.dtype)
    n_bytes = _C.potentials_workspace(*shape, n_valid, threads)
    if n_bytes == 0:
        return None
    prototype, row = torch.empty(sum(heads.columns)), torch.empty(len(logits), heads.n_rows)
    workspace = torch.empty(n_bytes, dtype=torch.uint8)
    done = _C.potentials(
        *shape,
        temperature,
        n_iterations,
        n_valid,
        prototype.data_ptr(),
        row.data_ptr(),
        workspace.data_ptr(),
        n_bytes,
        threads,
    )
    return (prototype, row) if done else None


def column_logsumexp(
    logits: list[Tensor], temperature: float, n_valid: int
) -> tuple[Tensor, Tensor]:
    """Maximum of z/T over the valid rows and sum of exp(z/T - maximum), both [sum K] float32."""
    heads = pack_heads(logits, "logits")
    total_columns = sum(heads.columns)
    maximum, total = torch.empty(total_columns), torch.empty(total_columns)
    _C.column_logsumexp(
        heads.numbers,
        heads.n_rows,
        heads.dtype,
        temperature,
        n_valid,
        maximum.data_ptr(),
        total.data_ptr(),
        torch.get_num_threads(),
    )
    return maximum, total


def row_step(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    """Row potentials for given prototype potentials and, on request, the mass of each prototype.

    Returns:
        row: [H, N] float32, b[n] = -log sum_k exp(z/T + a[k]); -inf for rows from n_valid on.
        mass: [sum K] float32, sum over valid rows of exp(z/T + a[k] + b[n]), or None.
    """
    heads = pack_heads(logits, "logits")
    prototype = vector(prototype, "prototype", (sum(heads.columns),), torch.float32)
    row = torch.empty(len(logits), heads.n_rows)
    mass = torch.empty(prototype.shape) if with_mass else None
    n_bytes = _C.row_step_workspace(prototype.numel(), n_valid) if with_mass else 0
    workspace = torch.empty(n_bytes, dtype=torch.uint8)
    _C.row_step(
        heads.numbers,
        heads.n_rows,
        heads.dtype,
        temperature,
        prototype.data_ptr(),
        n_valid,
        row.data_ptr(),
        0 if mass is None else mass.data_ptr(),
        workspace.data_ptr(),
        n_bytes,
        torch.get_num_threads(),
    )
    return row, mass


def assignments(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int
) -> list[Tensor]:
    """Softmax over k of z/T + a[k], [N, K] float32 for each head; zero for rows from n_valid on."""
    heads = pack_heads(logits, "logits")
    prototype = vector(prototype, "prototype", (sum(heads.columns),), torch.float32)
    out = [matrix(heads.n_rows, width, torch.float32) for width in heads.columns]
    _C.assignments(
        heads.numbers,
        heads.n_rows,
        heads.dtype,
        temperature,
        prototype.data_ptr(),
        n_valid,
        [q.data_ptr() for q in out],
        torch.get_num_threads(),
    )
    return out
