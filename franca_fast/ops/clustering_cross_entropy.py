"""Clustering cross-entropy of student scores against balanced (or centred) teacher assignments.

A student row m meets P teacher rows r = teacher_rows[m, :]. With student logits s, student
temperature t and assignments Q = exp(z/T + a + b) of the teacher logits z,

    q[m, k] = sum_p Q[r[m, p], k]
    loss    = sum_m w[m] * (P * logsumexp_k(s[m]/t) - sum_k q[m, k] * s[m, k] / t)
    d loss / d s[m, k] = w[m]/t * (P * softmax(s[m]/t)[k] - q[m, k])

which is -sum_k Q log softmax(s/t) summed over the pairs (DINO, arXiv 2104.14294), for every nested
head. Q is rebuilt from the potentials; no [M, K] array of targets is kept for the backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast.backends import choose
from franca_fast.errors import InputError

from . import _checks
from ._library import define
from .sinkhorn import SinkhornPotentials


def clustering_cross_entropy(
    student_logits: Tensor | Sequence[Tensor],
    teacher_logits: Tensor | Sequence[Tensor],
    potentials: SinkhornPotentials,
    *,
    teacher_temperature: float,
    student_temperature: float = 0.1,
    teacher_rows: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Weighted cross-entropy between student scores and teacher assignments, for each nested head.

    Differentiable in the student logits only.

    Args:
        student_logits: s, [M, K] or one [M, K_i] for each nested head.
        teacher_logits: z, [N, K] or one [N, K_i] for each nested head; a constant.
        potentials: Of the teacher logits, from `sinkhorn_potentials` or `row_potentials`.
        teacher_temperature: T > 0, the temperature that the potentials were computed with.
        student_temperature: t > 0.
        teacher_rows: int64 [M, P], the teacher rows that each student row meets, 0 <= row < N (not
            checked on devices other than the CPU, where checking would stall the stream). Default:
            row m meets row m, which needs M = N.
        weights: [M], the weight w of each student row. Default: 1 / M, the mean.

    Returns:
        The loss of each head, [number of heads], float32 (float64 for float64 logits). Sum it.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch, franca_fast as ff
        >>> teacher, student = torch.randn(6, 32), torch.randn(6, 32, requires_grad=True)
        >>> potentials = ff.ops.sinkhorn_potentials(teacher, temperature=0.05)
        >>> loss = ff.ops.clustering_cross_entropy(
        ...     student, teacher, potentials, teacher_temperature=0.05)
        >>> loss.sum().backward()
    """
    student = _checks.as_matrices("student_logits", student_logits)
    teacher = _checks.as_matrices("teacher_logits", teacher_logits)
    _checks.same_rows("student_logits", student)
    _checks.same_rows("teacher_logits", teacher)
    _checks.same_columns("student_logits", student, "teacher_logits", teacher)
    if student[0].device != teacher[0].device:
        raise InputError(
            f"teacher_logits: on {teacher[0].device}, student_logits on {student[0].device}; "
            f"accepted: one device"
        )
    prototype, row = _check_potentials(potentials, teacher)
    loss, _ = _cross_entropy(
        student,
        [z.detach() for z in teacher],
        prototype,
        row,
        _checks.temperature("student_temperature", student_temperature),
        _checks.temperature("teacher_temperature", teacher_temperature),
        _check_rows(teacher_rows, student[0], teacher[0]),
        _check_weights(weights, student[0]),
    )
    return loss


def _check_potentials(
    potentials: SinkhornPotentials, teacher: list[Tensor]
) -> tuple[Tensor, Tensor]:
    prototype, row = potentials
    given = [tuple(a.shape) for a in prototype], [tuple(b.shape) for b in row]
    expected = [(z.shape[1],) for z in teacher], [(z.shape[0],) for z in teacher]
    if given != expected:
        raise InputError(
            f"potentials: prototype {given[0]} and row {given[1]}; accepted for these teacher "
            f"logits: {expected[0]} and {expected[1]}"
        )
    return torch.cat(prototype), torch.stack(row)


def _check_rows(rows: Tensor | None, student: Tensor, teacher: Tensor) -> Tensor:
    n_student, n_teacher = student.shape[0], teacher.shape[0]
    if rows is None:
        if n_student != n_teacher:
            raise InputError(
                f"teacher_rows: None with {n_student} student and {n_teacher} teacher rows; "
                f"accepted: a tensor [{n_student}, P], or equal numbers of rows"
            )
        return torch.arange(n_student, device=student.device).unsqueeze(1)
    if rows.dim() != 2 or rows.shape[0] != n_student or rows.shape[1] < 1:
        raise InputError(f"teacher_rows: shape {tuple(rows.shape)}; accepted: [{n_student}, P]")
    if rows.dtype != torch.int64 or rows.device != student.device:
        raise InputError(
            f"teacher_rows: {rows.dtype} on {rows.device}; "
            f"accepted: torch.int64 on {student.device}"
        )
    return rows


def _check_weights(weights: Tensor | None, student: Tensor) -> Tensor:
    n_rows = student.shape[0]
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    if weights is None:
        return student.new_full((n_rows,), 1.0 / max(1, n_rows), dtype=dtype)
    if weights.shape != (n_rows,) or weights.device != student.device:
        raise InputError(
            f"weights: shape {tuple(weights.shape)} on {weights.device}; "
            f"accepted: [{n_rows}] on {student.device}"
        )
    return weights.detach().to(dtype)


def _forward_impl(
    student: list[Tensor],
    teacher: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    if teacher_rows.device.type == "cpu" and teacher_rows.numel():
        low, high = (int(bound) for bound in teacher_rows.aminmax())
        if low < 0 or high >= teacher[0].shape[0]:
            raise InputError(
                f"teacher_rows: values {low}..{high}; accepted: 0..{teacher[0].shape[0] - 1}"
            )
    return choose("clustering_cross_entropy", student[0]).forward(
        student,
        teacher,
        prototype,
        row,
        student_temperature,
        teacher_temperature,
        teacher_rows,
        weights,
    )


def _forward_fake(
    student: list[Tensor],
    teacher: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    heads, n_rows = len(student), student[0].shape[0]
    return weights.new_empty((heads,)), weights.new_empty((heads, n_rows))


def _backward_impl(
    grad_loss: Tensor, student: list[Tensor], teacher: list[Tensor], *arguments: Any
) -> list[Tensor]:
    implementation = choose("clustering_cross_entropy", student[0])
    return implementation.backward(grad_loss, student, teacher, *arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    student, teacher, prototype, row, t_student, t_teacher, teacher_rows, weights = inputs
    ctx.n_heads = len(student)
    ctx.temperatures = (t_student, t_teacher)
    ctx.save_for_backward(*student, *teacher, prototype, row, output[1], teacher_rows, weights)


def _autograd_backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    # The log-sum-exp is an internal result that no caller sees, so it has no gradient.
    *logits, prototype, row, lse, teacher_rows, weights = ctx.saved_tensors
    gradients = _cross_entropy_backward(
        grad_loss.contiguous(),
        logits[: ctx.n_heads],
        logits[ctx.n_heads :],
        prototype,
        row,
        lse,
        *ctx.temperatures,
        teacher_rows,
        weights,
    )
    return gradients, [None] * ctx.n_heads, None, None, None, None, None, None


_ARGUMENTS = (
    "float student_temperature, float teacher_temperature, Tensor teacher_rows, Tensor weights"
)

_cross_entropy_backward = define(
    "clustering_cross_entropy_backward(Tensor grad_loss, Tensor[] student, Tensor[] teacher, "
    f"Tensor prototype, Tensor row, Tensor lse, {_ARGUMENTS}) -> Tensor[]",
    _backward_impl,
    lambda grad_loss, student, *rest: [s.new_empty(s.shape) for s in student],
)
_cross_entropy = define(
    "clustering_cross_entropy(Tensor[] student, Tensor[] teacher, Tensor prototype, Tensor row, "
    f"{_ARGUMENTS}) -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
    backward=_autograd_backward,
    setup_context=_setup_context,
)
