"""Clustering cross-entropy in the compiled core.

Targets are rebuilt from the teacher's scores a few hundred at a time, so nothing of the size of the
scores is stored but the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import pack_problem, places, vector
from franca_fast.backends.contracts import ClusteringProblem, Scores
from franca_fast.backends.cpu._memory import matrix


def forward(problem: ClusteringProblem) -> tuple[Tensor, Tensor]:
    packed = pack_problem(problem)
    n_heads, n_rows = len(packed.student.columns), packed.student.n_rows
    loss = torch.empty(n_heads, dtype=torch.float32)
    lse = torch.empty(n_heads, n_rows, dtype=torch.float32)
    n_bytes = _C.clustering_forward_workspace(n_heads, n_rows)
    workspace = torch.empty(n_bytes, dtype=torch.uint8)
    _C.clustering_forward(
        packed.view,
        loss.data_ptr(),
        lse.data_ptr(),
        workspace.data_ptr(),
        n_bytes,
        torch.get_num_threads(),
    )
    return loss, lse


def backward(
    problem: ClusteringProblem,
    grad_loss: Tensor,
    lse: Tensor,
    out: Sequence[Tensor] | None = None,
) -> Scores:
    packed = pack_problem(problem)
    n_heads = len(packed.student.columns)
    grad_loss = vector(grad_loss, "grad_loss", (n_heads,), torch.float32)
    lse = vector(lse, "lse", (n_heads, packed.student.n_rows), torch.float32)
    if out is None:
        out = [matrix(s.shape[0], s.shape[1], s.dtype) for s in problem.student.values]
        numbers = [n for g in out for n in (g.data_ptr(), g.shape[1], g.shape[1])]
    else:
        numbers = places(out, packed.student)
    _C.clustering_backward(
        packed.view, grad_loss.data_ptr(), lse.data_ptr(), numbers, torch.get_num_threads()
    )
    return Scores(out)
