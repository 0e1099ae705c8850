"""Sinkhorn-Knopp half-steps in the compiled core, and all iterations at once."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import pack_heads, vector
from franca_fast.backends._sinkhorn_iteration import balance
from franca_fast.backends.contracts import Scores
from franca_fast.backends.cpu._memory import matrix


def potentials(
    scores: Scores, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor]:
    joined = _joined(scores, temperature, n_iterations, n_valid)
    if joined is not None:
        return joined
    return balance(column_logsumexp, row_step, scores, temperature, n_iterations, n_valid)


def _joined(
    scores: Scores, temperature: float, n_iterations: int, n_valid: int
) -> tuple[Tensor, Tensor] | None:
    """Potentials by passes that are joined, or None where the scores are not fit for it."""
    heads = pack_heads(scores.values, "scores")
    threads = torch.get_num_threads()
    shape = (heads.numbers, heads.n_rows, heads.dtype)
    n_bytes = _C.potentials_workspace(*shape, n_valid, threads)
    if n_bytes == 0:
        return None
    of_prototypes = torch.empty(sum(heads.columns), dtype=torch.float32)
    of_rows = torch.empty(len(heads.columns), heads.n_rows, dtype=torch.float32)
    workspace = torch.empty(n_bytes, dtype=torch.uint8)
    done = _C.potentials(
        *shape,
        temperature,
        n_iterations,
        n_valid,
        of_prototypes.data_ptr(),
        of_rows.data_ptr(),
        workspace.data_ptr(),
        n_bytes,
        threads,
    )
    return (of_prototypes, of_rows) if done else None


def column_logsumexp(scores: Scores, temperature: float, n_valid: int) -> tuple[Tensor, Tensor]:
    heads = pack_heads(scores.values, "scores")
    maximum, total = (torch.empty(sum(heads.columns), dtype=torch.float32) for _ in range(2))
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
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int, with_mass: bool
) -> tuple[Tensor, Tensor | None]:
    heads = pack_heads(scores.values, "scores")
    a = vector(prototype_potentials, "prototype_potentials", (sum(heads.columns),), torch.float32)
    row_potentials = torch.empty(len(heads.columns), heads.n_rows, dtype=torch.float32)
    mass = torch.empty_like(a) if with_mass else None
    n_bytes = _C.row_step_workspace(a.numel(), n_valid) if with_mass else 0
    workspace = torch.empty(n_bytes, dtype=torch.uint8)
    _C.row_step(
        heads.numbers,
        heads.n_rows,
        heads.dtype,
        temperature,
        a.data_ptr(),
        n_valid,
        row_potentials.data_ptr(),
        0 if mass is None else mass.data_ptr(),
        workspace.data_ptr(),
        n_bytes,
        torch.get_num_threads(),
    )
    return row_potentials, mass


def assignments(
    scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int
) -> list[Tensor]:
    heads = pack_heads(scores.values, "scores")
    a = vector(prototype_potentials, "prototype_potentials", (sum(heads.columns),), torch.float32)
    out = [matrix(heads.n_rows, width, torch.float32) for width in heads.columns]
    _C.assignments(
        heads.numbers,
        heads.n_rows,
        heads.dtype,
        temperature,
        a.data_ptr(),
        n_valid,
        [q.data_ptr() for q in out],
        torch.get_num_threads(),
    )
    return out
