"""Clustering cross-entropy in plain PyTorch, one head and one block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast.backends.torch.sinkhorn import accumulation_dtype, row_blocks


def _assignments(z: Tensor, temperature: float, prototype: Tensor, row: Tensor) -> Tensor:
    """Q = exp(z/T + a + b), [N, K]; the one large temporary, of one head at a time."""
    x = (z.to(prototype.dtype) / temperature).add_(prototype)
    return x.add_(row.unsqueeze(1)).exp_()


def _targets(assignments: Tensor, rows: Tensor) -> Tensor:
    """Sum of the teacher rows that each student row meets, [M, K]."""
    q = assignments[rows[:, 0]]
    for p in range(1, rows.shape[1]):
        q += assignments[rows[:, p]]
    return q


def forward(
    student: list[Tensor],
    teacher: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Loss [H] and log-sum-exp of the student rows [H, M]."""
    n_rows, n_targets = teacher_rows.shape
    dtype = accumulation_dtype(student[0])
    loss = torch.zeros(len(student), dtype=dtype, device=student[0].device)
    lse = torch.empty(len(student), n_rows, dtype=dtype, device=student[0].device)
    potentials = prototype.split([z.shape[1] for z in teacher])
    for head, (s, z) in enumerate(zip(student, teacher, strict=True)):
        q = _assignments(z, teacher_temperature, potentials[head], row[head])
        for block in row_blocks(n_rows, s.shape[1]):
            x = s[block].to(dtype) / student_temperature
            lse[head, block] = torch.logsumexp(x, dim=1)
            agreement = (x * _targets(q, teacher_rows[block])).sum(dim=1)
            loss[head] += weights[block] @ (n_targets * lse[head, block] - agreement)
    return loss, lse


def backward(
    grad_loss: Tensor,
    student: list[Tensor],
    teacher: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    lse: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
    out: list[Tensor] | None = None,
) -> list[Tensor]:
    """Gradient of the student logits: grad * w/t * (P softmax(s/t) - q), in their dtype.

    `out` is where to write the gradients; it may be `student` itself, whose logits are then lost.
    """
    n_rows, n_targets = teacher_rows.shape
    potentials = prototype.split([z.shape[1] for z in teacher])
    gradients = []
    for head, (s, z) in enumerate(zip(student, teacher, strict=True)):
        q = _assignments(z, teacher_temperature, potentials[head], row[head])
        scale = (weights * (grad_loss[head] / student_temperature)).unsqueeze(1)
        gradient = s.new_empty(s.shape) if out is None else out[head]
        for block in row_blocks(n_rows, s.shape[1]):
            x = (s[block].to(lse.dtype) / student_temperature).sub_(lse[head, block].unsqueeze(1))
            x.exp_().mul_(n_targets).sub_(_targets(q, teacher_rows[block]))
            torch.mul(x, scale[block], out=x)
            gradient[block] = x
        gradients.append(gradient)
    return gradients
