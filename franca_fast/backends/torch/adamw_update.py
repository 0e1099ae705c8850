"""AdamW and the teacher's average in plain PyTorch, around PyTorch's own fused AdamW."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from franca_fast.backends.contracts import AdamWProblem

# Scaled gradients and new teachers are copies. Tensors are taken in pieces and groups of about
# this many elements, so that the copies stay small.
_GROUP_ELEMENTS = 1 << 22


def update(problem: AdamWProblem) -> None:
    steps = list(problem.steps)
    skipped = (~problem.finite).float()
    torch._foreach_add_(steps, 1)
    for group in _groups(problem):
        _adamw(group, skipped)
        _average(group)
    torch._foreach_sub_(steps, [skipped] * len(steps))


def _adamw(group: AdamWProblem, skipped: Tensor) -> None:
    gradients = list(group.gradients)
    if group.clip_factors is not None:
        gradients = list(torch._foreach_mul(gradients, group.clip_factors[group.modules[0]]))
    torch._fused_adamw_(
        list(group.parameters),
        gradients,
        list(group.exp_avgs),
        list(group.exp_avg_sqs),
        [],
        list(group.steps),
        lr=group.lrs[0],
        beta1=group.beta1,
        beta2=group.beta2,
        weight_decay=group.weight_decays[0],
        eps=group.eps,
        amsgrad=False,
        maximize=False,
        found_inf=skipped,
    )


def _average(group: AdamWProblem) -> None:
    kept = torch.tensor(group.momentum, dtype=group.parameters[0].dtype).item()
    # Not 1 - momentum rounded apart: the two must sum to 1, or the teacher slowly drifts.
    taken = 1.0 - kept
    for parameter, teacher in zip(group.parameters, group.teachers, strict=True):
        if teacher is not None:
            moved = (teacher * kept).add_(parameter * taken)
            teacher.copy_(torch.where(group.finite, moved, teacher))


def _groups(problem: AdamWProblem) -> Iterator[AdamWProblem]:
    """Pieces of tensors that share module, learning rate and weight decay."""
    rates = list(zip(problem.lrs, problem.weight_decays, problem.modules, strict=True))
    for _, indices in itertools.groupby(range(len(rates)), rates.__getitem__):
        places: list[tuple[int, int]] = []
        elements = 0
        for i in indices:
            size = problem.parameters[i].numel()
            for start in range(0, size, _GROUP_ELEMENTS):
                places.append((i, start))
                elements += min(size - start, _GROUP_ELEMENTS)
                if elements >= _GROUP_ELEMENTS:
                    yield _part(problem, places)
                    places, elements = [], 0
        if places:
            yield _part(problem, places)


def _part(problem: AdamWProblem, places: list[tuple[int, int]]) -> AdamWProblem:
    """The pieces that begin at these places, each a tensor and an element of it."""

    def pieces(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[i].view(-1)[start : start + _GROUP_ELEMENTS] for i, start in places]

    teachers = [
        None if teacher is None else teacher.view(-1)[start : start + _GROUP_ELEMENTS]
        for teacher, start in ((problem.teachers[i], start) for i, start in places)
    ]
    first = places[0][0]
    return problem._replace(
        parameters=pieces(problem.parameters),
        gradients=pieces(problem.gradients),
        exp_avgs=pieces(problem.exp_avgs),
        exp_avg_sqs=pieces(problem.exp_avg_sqs),
        steps=[problem.steps[i] for i, _ in places],
        teachers=teachers,
        lrs=problem.lrs[first : first + 1],
        weight_decays=problem.weight_decays[first : first + 1],
        modules=problem.modules[first : first + 1],
    )
