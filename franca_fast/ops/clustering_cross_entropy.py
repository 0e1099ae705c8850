"""Clustering cross-entropy of student scores against balanced (or centred) teacher assignments.

A student row m meets P teacher rows r = teacher_rows[m, :]. With student scores s, student
temperature t and assignments Q = exp(z/T + a + b) of the teacher scores z,

    q[m, k] = sum_p Q[r[m, p], k]
    loss    = sum_m w[m] * (P * logsumexp_k(s[m]/t) - sum_k q[m, k] * s[m, k] / t)
    d loss / d s[m, k] = w[m]/t * (P * softmax(s[m]/t)[k] - q[m, k])

which is -sum_k Q log softmax(s/t) summed over the pairs (DINO, arXiv 2104.14294), for every nested
head. Q is rebuilt from the potentials; no [M, K] array of targets is kept for the backward.
Streamed scores are recomputed too, block by block, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast.backends import choose
from franca_fast.backends.contracts import (
    ClusteringProblem,
    LossPasses,
    Scores,
    ScoresLike,
    potential_dtype,
)
from franca_fast.errors import InputError
from franca_fast.ops import _checks
from franca_fast.ops._library import define, packed, unpacked
from franca_fast.ops.split_rows import are_free, origin_of
from franca_fast.ops.targets import ClusteringTargets


def clustering_cross_entropy(
    student: ScoresLike,
    targets: ClusteringTargets,
    *,
    student_temperature: float = 0.1,
    teacher_rows: Tensor | None = None,
    weights: Tensor | None = None,
    overwrite_student: bool = False,
) -> Tensor:
    """Weighted cross-entropy between student scores and teacher assignments, for each nested head.

    Differentiable in the student's scores only (streamed: in features, prototypes and scales).

    Args:
        student: s, [M, K] or one [M, K_i] for each nested head, or `Scores`.
        targets: From `sinkhorn_targets` or `centered_targets`, of N rows; a constant. Its scores
            are streamed if the student's are.
        student_temperature: t, from 1e-6 to 1e6.
        teacher_rows: int64 [M, P], the teacher rows that each student row meets, 0 <= row < N (not
            checked on devices other than the CPU, where checking would stall the stream). Default:
            row m meets row m, which needs M = N.
        weights: [M], the weight w of each student row. Default: 1 / M, the mean.
        overwrite_student: Let the backward pass write the gradient over the student's scores, which
            saves memory of their size and the time to get it. For scores that nothing else needs,
            such as those that go into this loss only, and a single backward pass; autograd refuses
            what comes later and does need them. Has no effect where it might do harm: on views
            (other than parts by `split_rows`), scores that share memory with each other or the
            teacher's, need no gradient, or are not contiguous; on streamed scores, and under
            torch.compile.

    Returns:
        The loss of each head, [number of heads], float32 (float64 for float64 scores). Sum it.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch, franca_fast as ff
        >>> teacher, student = torch.randn(6, 32), torch.randn(6, 32, requires_grad=True)
        >>> targets = ff.ops.sinkhorn_targets(teacher, temperature=0.05)
        >>> ff.ops.clustering_cross_entropy(student, targets).sum().backward()
    """
    if not isinstance(targets, ClusteringTargets):
        raise InputError(
            f"targets: {_checks.described(targets)}; accepted: ClusteringTargets, as "
            f"sinkhorn_targets and centered_targets give"
        )
    own = _checks.scores("student", student)
    teacher = _checks.scores("targets.scores", targets.scores)
    columns = _check_sides(own, teacher)
    overwrite = _checks.flag("overwrite_student", overwrite_student) and not own.streamed
    loss, _ = _cross_entropy(
        packed(own),
        [tensor.detach() for tensor in packed(teacher)],
        *_check_potentials(targets.potentials, teacher, columns),
        _checks.temperature("student_temperature", student_temperature),
        _checks.temperature("targets.temperature", targets.temperature),
        _check_rows(teacher_rows, own.values[0], teacher.values[0]),
        _check_weights(weights, own.values[0]),
        overwrite and _overwritable(own.values, teacher.values),
    )
    return loss


def _check_sides(student: Scores, teacher: Scores) -> list[int]:
    """Both sides must have one form, one device, and the same columns, which it returns."""
    if student.streamed is not teacher.streamed:
        forms = {True: "streamed", False: "stored"}
        raise InputError(
            f"student: {forms[student.streamed]} scores beside {forms[teacher.streamed]} ones in "
            f"targets; accepted: both of one form"
        )
    columns, expected = student.columns, teacher.columns
    if columns != expected:
        raise InputError(
            f"student: columns {columns} beside {expected} in targets; accepted: the same"
        )
    ours, theirs = student.values[0].device, teacher.values[0].device
    if ours != theirs:
        raise InputError(f"student: on {ours}, targets on {theirs}; accepted: one device")
    return columns


def _check_potentials(given: object, teacher: Scores, columns: list[int]) -> tuple[Tensor, Tensor]:
    if not _checks.is_sequence(given) or len(given) != 2:
        raise InputError(
            f"targets.potentials: {type(given).__name__}; accepted: SinkhornPotentials"
        )
    prototype = _checks.as_tensors("targets.potentials.prototype", given[0], "a tensor [K_i]")
    row = _checks.as_tensors("targets.potentials.row", given[1], "a tensor [N]")
    z = teacher.values[0]
    _checks.potentials("targets.potentials.prototype", prototype, [(k,) for k in columns], z)
    _checks.potentials("targets.potentials.row", row, [z.shape[:1]] * len(columns), z)
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
    dtype = potential_dtype(student)
    if weights is None:
        return student.new_full((n_rows,), 1.0 / max(1, n_rows), dtype=dtype)
    _checks.as_tensor("weights", weights, f"a tensor [{n_rows}]")
    if weights.shape != (n_rows,) or weights.device != student.device or weights.is_complex():
        raise InputError(
            f"weights: shape {tuple(weights.shape)}, {weights.dtype} on {weights.device}; "
            f"accepted: real numbers [{n_rows}] on {student.device}"
        )
    return weights.detach().to(dtype)


def _overwritable(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> bool:
    for i, s in enumerate(student):
        if s.requires_grad and origin_of(s).is_leaf:
            raise InputError(
                f"overwrite_student: True, but student[{i}] is a leaf, whose values would become "
                f"its gradient; accepted: results of other operators"
            )
    return are_free(student, teacher)


def _check_row_values(rows: Tensor, n_teacher: int) -> None:
    if rows.is_cpu and rows.numel():
        low, high = (int(bound) for bound in rows.aminmax())
        if low < 0 or high >= n_teacher:
            raise InputError(f"teacher_rows: values {low}..{high}; accepted: 0..{n_teacher - 1}")


# What goes through the operators below: the fields of a ClusteringProblem. The scores of student
# and teacher are one list each, and the row potentials [H, N] tell the number of heads.
_PROBLEM = (
    "Tensor[] student, Tensor[] teacher, Tensor prototype_potentials, Tensor row_potentials, "
    "float student_temperature, float teacher_temperature, Tensor teacher_rows, Tensor weights"
)


def _problem(
    student: Sequence[Tensor], teacher: Sequence[Tensor], a: Tensor, b: Tensor, *rest: Any
) -> ClusteringProblem:
    n_heads = b.shape[0]
    return ClusteringProblem(unpacked(student, n_heads), unpacked(teacher, n_heads), a, b, *rest)


def _kernel(scores: Scores) -> LossPasses:
    if scores.streamed:
        return choose("streamed_clustering", scores.values[0])
    return choose("clustering_cross_entropy", scores.values[0])


def _forward_impl(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = _problem(*arguments[:-1])
    _check_row_values(problem.teacher_rows, problem.teacher.n_rows)
    return _kernel(problem.student).forward(problem)


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    weights, n_heads = arguments[7], arguments[3].shape[0]
    return weights.new_empty((n_heads,)), weights.new_empty((n_heads, weights.shape[0]))


def _backward_impl(grad_loss: Tensor, lse: Tensor, *arguments: Any) -> list[Tensor]:
    problem = _problem(*arguments)
    return packed(_kernel(problem.student).backward(problem, grad_loss, lse))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    student, teacher, a, b, t_student, t_teacher, teacher_rows, weights, overwrite = inputs
    ctx.sizes, ctx.overwritten = (len(student), len(teacher)), False
    ctx.overwrites = [origin_of(s) for s in student] if overwrite else []
    ctx.temperatures = (t_student, t_teacher)
    ctx.save_for_backward(*student, *teacher, a, b, teacher_rows, weights, output[1])


def _autograd_backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    # The log-sum-exp is an internal result that no caller sees, so it has no gradient.
    if ctx.overwritten:
        raise RuntimeError(
            "clustering_cross_entropy: a second backward pass, but the first one has overwritten "
            "the student's scores, as overwrite_student asked for"
        )
    *scores, a, b, teacher_rows, weights, lse = ctx.saved_tensors
    n_student, n_teacher = ctx.sizes
    student, teacher = scores[:n_student], scores[n_student:]
    arguments = (student, teacher, a, b, *ctx.temperatures, teacher_rows, weights)
    if ctx.overwrites:
        gradients = _overwrite(ctx, grad_loss.contiguous(), lse, _problem(*arguments))
    else:
        gradients = _cross_entropy_backward(grad_loss.contiguous(), lse, *arguments)
    return gradients, [None] * n_teacher, None, None, None, None, None, None, None


def _overwrite(
    ctx: Any, grad_loss: Tensor, lse: Tensor, problem: ClusteringProblem
) -> list[Tensor]:
    """The gradients in the memory of the student's scores."""
    student = problem.student.values
    kernel = choose("clustering_cross_entropy", student[0])
    gradients = kernel.backward(problem, grad_loss, lse, out=[s.data for s in student])
    # Whoever else saved these scores for a backward pass is told of the change.
    for tensor in (*student, *ctx.overwrites):
        torch.autograd.graph.increment_version(tensor)
    ctx.overwritten, ctx.overwrites = True, []
    return packed(gradients)


_cross_entropy_backward = define(
    f"clustering_cross_entropy_backward(Tensor grad_loss, Tensor lse, {_PROBLEM}) -> Tensor[]",
    _backward_impl,
    lambda grad_loss, lse, student, *_: [t.new_empty(t.shape) for t in student],
)
_cross_entropy = define(
    f"clustering_cross_entropy({_PROBLEM}, bool overwrite_student) -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
    backward=_autograd_backward,
    setup_context=_setup_context,
)
