"""Float64 definitions of the operators, written straight from the equations, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor


def heads(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """The five nested heads `prefix.0` .. `prefix.4` of the golden values."""
    return [tensors[f"{prefix}.{i}"] for i in range(5)]


def sinkhorn_float64(z: Tensor, temperature: float, n_iterations: int = 3) -> Tensor:
    """Assignments by alternating log-space normalisation in float64."""
    log_q = z.double() / temperature
    for _ in range(n_iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0, keepdim=True)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()


def cross_entropy_float64(
    student: Tensor, assignments: Tensor, rows: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """sum_m w[m] sum_p -sum_k Q[rows[m, p], k] log softmax(s[m] / t)[k]."""
    log_p = torch.log_softmax(student.double() / temperature, dim=1)
    pairs = -(assignments.double()[rows] * log_p.unsqueeze(1)).sum(dim=(1, 2))
    return (weights.double() * pairs).sum()


def attention_float64(q: Tensor, k: Tensor, v: Tensor, seqlens: list[int]) -> Tensor:
    """Plain softmax attention, sequence by sequence."""
    outputs, start = [], 0
    for length in seqlens:
        a, b, c = (x[start : start + length].double().transpose(0, 1) for x in (q, k, v))
        weights = torch.softmax(a @ b.transpose(1, 2) * q.shape[2] ** -0.5, dim=-1)
        outputs.append((weights @ c).transpose(0, 1))
        start += length
    return torch.cat(outputs)
