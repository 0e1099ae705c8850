"""Clustering cross-entropy of student scores against balanced (or centred) teacher assignments.

A student row m meets P teacher rows r = teacher_rows[m, :]. With student logits s, student
temperature t and assignments Q = exp(z/T + a + b) of the teacher logits z,

    q[m, k] = sum_p Q[r[m, p], k]
    loss    = sum_m w[m] * (P * logsumexp_k(s[m]/t) - sum_k q[m, k] * s[m, k] / t)
    d loss / d s[m, k] = w[m]/t * (P * softmax(s[m]/t)[k] - q[m, k])

which is -sum_k Q log softmax(s/t) summed over the pairs (DINO, arXiv 2104.14294), for every nested
head. Q is rebuilt from the potentials; no [M, K] array of targets is kept for the backward. Given
as factors, the scores themselves are recomputed too, block by block, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast.backends import choose
from franca_fast.errors import InputError
from franca_fast.ops import _checks
from franca_fast.ops._library import define
from franca_fast.ops.factored_scores import FactoredScores, lists
from franca_fast.ops.sinkhorn import SinkhornPotentials
from franca_fast.ops.split_rows import are_free, origin_of


def clustering_cross_entropy(
    student_logits: Tensor | Sequence[Tensor] | FactoredScores,
    teacher_logits: Tensor | Sequence[Tensor] | FactoredScores,
    potentials: SinkhornPotentials,
    *,
    teacher_temperature: float,
    student_temperature: float = 0.1,
    teacher_rows: Tensor | None = None,
    weights: Tensor | None = None,
    overwrite_student: bool = False,
) -> Tensor:
    """Weighted cross-entropy between student scores and teacher assignments, for each nested head.

    Differentiable in the student logits only (given as `FactoredScores`: in their features,
    prototypes and scales).

    Args:
        student_logits: s, [M, K] or one [M, K_i] for each nested head, or `FactoredScores`.
        teacher_logits: z, [N, K] or one [N, K_i] for each nested head, or `FactoredScores` if the
            student's are; a constant.
        potentials: Of the teacher logits, from `sinkhorn_potentials` or `row_potentials`.
        teacher_temperature: T, with which the potentials were computed, from 1e-6 to 1e6.
        student_temperature: t, from 1e-6 to 1e6.
        teacher_rows: int64 [M, P], the teacher rows that each student row meets, 0 <= row < N (not
            checked on devices other than the CPU, where checking would stall the stream). Default:
            row m meets row m, which needs M = N.
        weights: [M], the weight w of each student row. Default: 1 / M, the mean.
        overwrite_student: Let the backward pass write the gradient over the student logits, which
            saves memory of their size and the time to get it. For logits that nothing else needs,
            such as scores that go into this loss only, and a single backward pass; autograd
            refuses what comes later and does need them. Has no effect where it might do harm: on
            views (other than parts by `split_rows`), logits that share memory with each other or
            the teacher's, need no gradient, or are not contiguous; on factored scores, and under
            torch.compile.

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
    temperatures = (
        _checks.temperature("student_temperature", student_temperature),
        _checks.temperature("teacher_temperature", teacher_temperature),
    )
    if isinstance(student_logits, FactoredScores):
        if not isinstance(teacher_logits, FactoredScores):
            raise InputError(
                "teacher_logits: logits beside factored student scores; accepted: FactoredScores"
            )
        return _factored_loss(
            student_logits, teacher_logits, potentials, temperatures, teacher_rows, weights
        )
    if isinstance(teacher_logits, FactoredScores):
        raise InputError(
            "teacher_logits: FactoredScores beside stored student logits; accepted: logits"
        )
    student = _checks.as_matrices("student_logits", student_logits)
    teacher = _checks.as_matrices("teacher_logits", teacher_logits)
    _checks.same_rows("student_logits", student)
    _checks.same_rows("teacher_logits", teacher)
    _checks.same_columns("student_logits", student, "teacher_logits", teacher)
    _check_devices(student[0], teacher[0])
    prototype, row = _check_potentials(potentials, teacher[0], [z.shape[1] for z in teacher])
    rows = _check_rows(teacher_rows, student[0], teacher[0])
    factors = _check_weights(weights, student[0])
    overwrite = _checks.flag("overwrite_student", overwrite_student) and _overwritable(
        student, teacher
    )
    teacher = [z.detach() for z in teacher]
    loss, _ = _cross_entropy(
        student, teacher, prototype, row, *temperatures, rows, factors, overwrite
    )
    return loss


def _factored_loss(
    student: FactoredScores,
    teacher: FactoredScores,
    potentials: SinkhornPotentials,
    temperatures: tuple[float, float],
    teacher_rows: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    own, other = lists("student_logits", student), lists("teacher_logits", teacher)
    columns = [v.shape[0] for v in other[1]]
    if [v.shape[0] for v in own[1]] != columns:
        raise InputError(
            f"student_logits.prototypes: {[v.shape[0] for v in own[1]]}; "
            f"accepted: as many as the teacher's, {columns}"
        )
    _check_devices(own[0][0], other[0][0])
    prototype, row = _check_potentials(potentials, other[0][0], columns)
    loss, _ = _factored_cross_entropy(
        *own,
        *([t.detach() for t in factor] for factor in other),
        prototype,
        row,
        *temperatures,
        _check_rows(teacher_rows, own[0][0], other[0][0]),
        _check_weights(weights, own[0][0]),
    )
    return loss


def _check_devices(student: Tensor, teacher: Tensor) -> None:
    if student.device != teacher.device:
        raise InputError(
            f"teacher_logits: on {teacher.device}, student_logits on {student.device}; "
            f"accepted: one device"
        )


def _check_potentials(
    given: SinkhornPotentials, teacher: Tensor, columns: list[int]
) -> tuple[Tensor, Tensor]:
    if not isinstance(given, Sequence) or len(given) != 2:
        raise InputError(
            f"potentials: {type(given).__name__}; accepted: SinkhornPotentials, or a pair of what "
            f"it holds"
        )
    prototype = _checks.as_tensors("potentials.prototype", given[0], "a tensor [K_i]")
    row = _checks.as_tensors("potentials.row", given[1], "a tensor [N]")
    _checks.potentials("potentials.prototype", prototype, [(k,) for k in columns], teacher)
    _checks.potentials("potentials.row", row, [(teacher.shape[0],)] * len(columns), teacher)
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
    _checks.as_tensor("teacher_rows", rows, f"an int64 tensor [{n_student}, P]")
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
    dtype = _checks.potential_dtype(student)
    if weights is None:
        return student.new_full((n_rows,), 1.0 / max(1, n_rows), dtype=dtype)
    _checks.as_tensor("weights", weights, f"a tensor [{n_rows}]")
    if weights.shape != (n_rows,) or weights.device != student.device or weights.is_complex():
        raise InputError(
            f"weights: shape {tuple(weights.shape)}, {weights.dtype} on {weights.device}; "
            f"accepted: real numbers [{n_rows}] on {student.device}"
        )
    return weights.detach().to(dtype)


def _overwritable(student: list[Tensor], teacher: list[Tensor]) -> bool:
    for i, s in enumerate(student):
        if s.requires_grad and origin_of(s).is_leaf:
            raise InputError(
                f"overwrite_student: True, but student_logits[{i}] is a leaf, whose values would "
                f"become its gradient; accepted: results of other operators"
            )
    return are_free(student, teacher)


def _check_row_values(rows: Tensor, n_teacher: int) -> None:
    if rows.device.type == "cpu" and rows.numel():
        low, high = (int(bound) for bound in rows.aminmax())
        if low < 0 or high >= n_teacher:
            raise InputError(f"teacher_rows: values {low}..{high}; accepted: 0..{n_teacher - 1}")


def _forward_impl(
    student: list[Tensor],
    teacher: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
    overwrite_student: bool,
) -> tuple[Tensor, Tensor]:
    _check_row_values(teacher_rows, teacher[0].shape[0])
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


def _forward_fake(student: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    heads, n_rows, weights = len(student), student[0].shape[0], arguments[-2]
    return weights.new_empty((heads,)), weights.new_empty((heads, n_rows))


def _backward_impl(
    grad_loss: Tensor, student: list[Tensor], teacher: list[Tensor], *arguments: Any
) -> list[Tensor]:
    implementation = choose("clustering_cross_entropy", student[0])
    return implementation.backward(grad_loss, student, teacher, *arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    student, teacher, prototype, row, t_student, t_teacher, teacher_rows, weights, over = inputs
    ctx.n_heads, ctx.overwritten = len(student), False
    ctx.overwrites = [origin_of(s) for s in student] if over else []
    ctx.temperatures = (t_student, t_teacher)
    ctx.save_for_backward(*student, *teacher, prototype, row, output[1], teacher_rows, weights)


def _autograd_backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    # The log-sum-exp is an internal result that no caller sees, so it has no gradient.
    if ctx.overwritten:
        raise RuntimeError(
            "clustering_cross_entropy: a second backward pass, but the first one has overwritten "
            "the student logits, as overwrite_student asked for"
        )
    *logits, prototype, row, lse, teacher_rows, weights = ctx.saved_tensors
    student, teacher = logits[: ctx.n_heads], logits[ctx.n_heads :]
    arguments = (prototype, row, lse, *ctx.temperatures, teacher_rows, weights)
    if ctx.overwrites:
        gradients = _overwrite(ctx, grad_loss.contiguous(), student, teacher, *arguments)
    else:
        gradients = _cross_entropy_backward(grad_loss.contiguous(), student, teacher, *arguments)
    return gradients, [None] * ctx.n_heads, None, None, None, None, None, None, None


def _overwrite(ctx: Any, grad_loss: Tensor, student: list[Tensor], *arguments: Any) -> list[Tensor]:
    """The gradients in the memory of the student logits."""
    implementation = choose("clustering_cross_entropy", student[0])
    gradients = implementation.backward(
        grad_loss, student, *arguments, out=[s.data for s in student]
    )
    # Whoever else saved these logits for a backward pass is told of the change.
    for tensor in (*student, *ctx.overwrites):
        torch.autograd.graph.increment_version(tensor)
    ctx.overwritten, ctx.overwrites = True, []
    return gradients


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
    f"{_ARGUMENTS}, bool overwrite_student) -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
    backward=_autograd_backward,
    setup_context=_setup_context,
)


def _factored_forward_impl(
    x: list[Tensor],
    v: list[Tensor],
    scales: list[Tensor],
    teacher_x: list[Tensor],
    teacher_v: list[Tensor],
    teacher_scales: list[Tensor],
    prototype: Tensor,
    row: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    teacher_rows: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    _check_row_values(teacher_rows, teacher_x[0].shape[0])
    return choose("streamed_clustering", x[0]).forward(
        (x, v, scales),
        (teacher_x, teacher_v, teacher_scales),
        prototype,
        row,
        student_temperature,
        teacher_temperature,
        teacher_rows,
        weights,
    )


def _factored_backward_impl(
    grad_loss: Tensor,
    x: list[Tensor],
    v: list[Tensor],
    scales: list[Tensor],
    teacher_x: list[Tensor],
    teacher_v: list[Tensor],
    teacher_scales: list[Tensor],
    *arguments: Any,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return choose("streamed_clustering", x[0]).backward(
        grad_loss, (x, v, scales), (teacher_x, teacher_v, teacher_scales), *arguments
    )


def _factored_setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
) -> None:
    factors, (prototype, row, t_student, t_teacher, teacher_rows, weights) = inputs[:6], inputs[6:]
    ctx.n_heads = len(factors[0])
    ctx.temperatures = (t_student, t_teacher)
    flat = [tensor for factor in factors for tensor in factor]
    ctx.save_for_backward(*flat, prototype, row, output[1], teacher_rows, weights)


def _factored_autograd_backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    *flat, prototype, row, lse, teacher_rows, weights = ctx.saved_tensors
    n = ctx.n_heads
    gradients = _factored_cross_entropy_backward(
        grad_loss.contiguous(),
        *(flat[i * n : (i + 1) * n] for i in range(6)),
        prototype,
        row,
        lse,
        *ctx.temperatures,
        teacher_rows,
        weights,
    )
    return (*gradients, *([[None] * n] * 3), None, None, None, None, None, None)


_FACTORS = (
    "Tensor[] features, Tensor[] prototypes, Tensor[] scales, Tensor[] teacher_features, "
    "Tensor[] teacher_prototypes, Tensor[] teacher_scales, Tensor prototype, Tensor row"
)
_factored_cross_entropy_backward = define(
    f"factored_cross_entropy_backward(Tensor grad_loss, {_FACTORS}, Tensor lse, {_ARGUMENTS}) "
    "-> (Tensor[], Tensor[], Tensor[])",
    _factored_backward_impl,
    lambda grad_loss, x, v, scales, *_: tuple(
        [t.new_empty(t.shape) for t in factor] for factor in (x, v, scales)
    ),
)
_factored_cross_entropy = define(
    f"factored_cross_entropy({_FACTORS}, {_ARGUMENTS}) -> (Tensor, Tensor)",
    _factored_forward_impl,
    lambda x, *rest: _forward_fake(x, *rest, False),
    backward=_factored_autograd_backward,
    setup_context=_factored_setup_context,
)
