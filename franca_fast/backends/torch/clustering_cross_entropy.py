"""Clustering cross-entropy in plain PyTorch, one head and one block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from franca_fast.backends.contracts import ClusteringProblem, Scores, potential_dtype
from franca_fast.backends.torch.sinkhorn import row_blocks


def _heads(problem: ClusteringProblem) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each head with its student scores and Q = exp(z/T + a + b), [N, K].

    Q is the one large temporary, of one head at a time.
    """
    teacher, temperature = problem.teacher, problem.teacher_temperature
    potentials = problem.prototype_potentials.split(teacher.columns)
    for head, (s, z) in enumerate(zip(problem.student.values, teacher.values, strict=True)):
        a, b = potentials[head], problem.row_potentials[head]
        x = (z.to(a.dtype) / temperature).add_(a)
        yield head, s, x.add_(b.unsqueeze(1)).exp_()


def _targets(assignments: Tensor, rows: Tensor) -> Tensor:
    """Sum of the teacher rows that each student row meets, [M, K]."""
    q = assignments[rows[:, 0]]
    for p in range(1, rows.shape[1]):
        q += assignments[rows[:, p]]
    return q


def forward(problem: ClusteringProblem) -> tuple[Tensor, Tensor]:
    student, rows = problem.student.values, problem.teacher_rows
    n_rows, n_targets = rows.shape
    dtype = potential_dtype(student[0])
    loss = torch.zeros(len(student), dtype=dtype, device=student[0].device)
    lse = torch.empty(len(student), n_rows, dtype=dtype, device=student[0].device)
    for head, s, q in _heads(problem):
        for block in row_blocks(n_rows, s.shape[1]):
            x = s[block].to(dtype) / problem.student_temperature
            lse[head, block] = torch.logsumexp(x, dim=1)
            agreement = (x * _targets(q, rows[block])).sum(dim=1)
            loss[head] += problem.weights[block] @ (n_targets * lse[head, block] - agreement)
    return loss, lse


def backward(
    problem: ClusteringProblem,
    grad_loss: Tensor,
    lse: Tensor,
    out: Sequence[Tensor] | None = None,
) -> Scores:
    rows, temperature = problem.teacher_rows, problem.student_temperature
    n_rows, n_targets = rows.shape
    gradients = []
    for head, s, q in _heads(problem):
        scale = (problem.weights * (grad_loss[head] / temperature)).unsqueeze(1)
        gradient = s.new_empty(s.shape) if out is None else out[head]
        for block in row_blocks(n_rows, s.shape[1]):
            x = (s[block].to(lse.dtype) / temperature).sub_(lse[head, block].unsqueeze(1))
            x.exp_().mul_(n_targets).sub_(_targets(q, rows[block]))
            torch.mul(x, scale[block], out=x)
            gradient[block] = x
        gradients.append(gradient)
    return Scores(gradients)
