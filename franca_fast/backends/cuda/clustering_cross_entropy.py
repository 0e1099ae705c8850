"""Clustering cross-entropy as CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import pack_problem, places, vector
from franca_fast.backends.contracts import ClusteringProblem, Scores
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace


def forward(problem: ClusteringProblem) -> tuple[Tensor, Tensor]:
    device = problem.weights.device
    packed = pack_problem(problem, device)
    n_heads = len(packed.student.columns)
    loss = torch.empty(n_heads, dtype=torch.float32, device=device)
    lse = torch.empty(n_heads, packed.student.n_rows, dtype=torch.float32, device=device)
    with on_device_of(loss):
        memory = workspace(_C.cuda.clustering_forward_workspace(packed.view), device)
        _C.cuda.clustering_forward(
            packed.view,
            loss.data_ptr(),
            lse.data_ptr(),
            memory.data_ptr(),
            memory.numel(),
            stream_of(loss),
        )
    return loss, lse


def backward(
    problem: ClusteringProblem,
    grad_loss: Tensor,
    lse: Tensor,
    out: Sequence[Tensor] | None = None,
) -> Scores:
    device = problem.weights.device
    packed = pack_problem(problem, device)
    n_heads = len(packed.student.columns)
    grad_loss = vector(grad_loss, "grad_loss", (n_heads,), torch.float32, device)
    lse = vector(lse, "lse", (n_heads, packed.student.n_rows), torch.float32, device)
    if out is None:
        out = [s.new_empty(s.shape) for s in problem.student.values]
    gradient = places(out, packed.student, device)
    with on_device_of(lse):
        _C.cuda.clustering_backward(
            packed.view, grad_loss.data_ptr(), lse.data_ptr(), gradient, stream_of(lse)
        )
    return Scores(out)
