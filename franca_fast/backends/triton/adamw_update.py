"""AdamW and the teacher's average as a Triton kernel, several tensors in a launch."""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from franca_fast.backends.contracts import AdamWProblem
from franca_fast.backends.triton._heads import count_units, locate, on_device_of, pick

# A kernel is compiled for each number of tensors, and looks for its own among all of them.
_TENSORS_OF_A_LAUNCH = 16
_BLOCK, _WARPS = 2048, 8


def update(problem: AdamWProblem) -> None:
    with on_device_of(problem.parameters[0]):
        finite = problem.finite.float()
        corrections = _corrections(problem, finite)
        for first in range(0, len(problem.parameters), _TENSORS_OF_A_LAUNCH):
            _launch(problem, slice(first, first + _TENSORS_OF_A_LAUNCH), corrections, finite)


def _corrections(problem: AdamWProblem, finite: Tensor) -> Tensor:
    """Counts the steps; 1 - beta1^n and the root of 1 - beta2^n of each tensor, [2, tensors]."""
    steps = list(problem.steps)
    torch._foreach_add_(steps, [finite] * len(steps))  # of one tensor, the host would ask its value
    n = torch.stack(steps).double()
    return torch.stack([1 - problem.beta1**n, (1 - problem.beta2**n).sqrt()]).float()


def _launch(problem: AdamWProblem, chosen: slice, corrections: Tensor, finite: Tensor) -> None:
    parameters = problem.parameters[chosen]
    teachers = problem.teachers[chosen]
    sizes = tuple(p.numel() for p in parameters)
    units = count_units(sizes, _BLOCK)
    if not units:
        return
    rates = list(zip(problem.lrs[chosen], problem.weight_decays[chosen], strict=True))
    _adamw_kernel[(units,)](
        tuple(parameters),
        tuple(problem.gradients[chosen]),
        tuple(problem.exp_avgs[chosen]),
        tuple(problem.exp_avg_sqs[chosen]),
        tuple(p if t is None else t for p, t in zip(parameters, teachers, strict=True)),
        tuple(int(t is not None) for t in teachers),
        sizes,
        tuple(float(-lr) for lr, _ in rates),
        tuple(float(1 - lr * decay) for lr, decay in rates),
        tuple(problem.modules[chosen]),
        finite if problem.clip_factors is None else problem.clip_factors,
        corrections,
        corrections.shape[1],
        chosen.start,
        finite,
        1 - problem.beta1,
        problem.beta2,
        1 - problem.beta2,
        problem.eps,
        problem.momentum,
        CLIPS=problem.clip_factors is not None,
        TENSORS=len(parameters),
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


_CHANGING = ["follows", "sizes", "negative_lrs", "kept_parameters", "modules", "n_all", "first"]
_CHANGING += ["gradient_share", "beta2", "square_share", "eps", "kept_teacher"]


@triton.jit
def _adamw(
    p_at,
    g_at,
    m_at,
    v_at,
    inside,
    clip,
    kept_parameter,
    step_size,
    correction,
    gradient_share,
    beta2,
    square_share,
    eps,
):
    """AdamW on one element of each lane; the updated parameters."""
    g = tl.load(g_at, mask=inside) * clip
    m = tl.load(m_at, mask=inside)
    v = tl.load(v_at, mask=inside)
    m = m + gradient_share * (g - m)
    v = v * beta2 + (square_share * g) * g
    denominator = tl.math.div_rn(tl.math.sqrt_rn(v), correction + tl.zeros_like(v)) + eps
    kept = tl.load(p_at, mask=inside) * kept_parameter
    p = kept + tl.math.div_rn(step_size * m, denominator)
    tl.store(p_at, p, mask=inside)
    tl.store(m_at, m, mask=inside)
    tl.store(v_at, v, mask=inside)
    return p


@triton.jit
def _average(t_at, p, inside, kept_teacher):
    # Not 1 - momentum rounded apart: the two must sum to 1, or the teacher slowly drifts.
    t = tl.load(t_at, mask=inside) * kept_teacher + p * (1.0 - kept_teacher)
    tl.store(t_at, t, mask=inside)


@triton.jit(do_not_specialize=_CHANGING)
def _adamw_kernel(
    parameters,
    gradients,
    exp_avgs,
    exp_avg_sqs,
    teachers,
    follows,  # whether there is a teacher
    sizes,
    negative_lrs,
    kept_parameters,  # 1 - lr * weight_decay
    modules,
    clip_factors,  # [modules]
    corrections,  # [2, tensors of all launches]
    n_all,
    first,  # number of the first tensor among all
    finite,
    gradient_share,  # 1 - beta1
    beta2,
    square_share,  # 1 - beta2
    eps,
    kept_teacher,
    CLIPS: tl.constexpr,
    TENSORS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    i, begin, _, _, size = locate(unit, sizes, BLOCK, TENSORS)
    clip = 1.0
    if CLIPS:
        clip = tl.load(clip_factors + pick(modules, i, TENSORS))
    step_size = pick(negative_lrs, i, TENSORS) / tl.load(corrections + first + i)
    correction = tl.load(corrections + n_all + first + i)
    kept_parameter = pick(kept_parameters, i, TENSORS)
    at = begin + tl.arange(0, BLOCK)
    p_at = pick(parameters, i, TENSORS) + at
    g_at = pick(gradients, i, TENSORS) + at
    m_at = pick(exp_avgs, i, TENSORS) + at
    v_at = pick(exp_avg_sqs, i, TENSORS) + at
    t_at = pick(teachers, i, TENSORS) + at
    follows_here = pick(follows, i, TENSORS)
    if tl.load(finite) > 0:
        # Without a mask, whole vectors are read.
        if begin + BLOCK <= size:
            p = _adamw(
                p_at, g_at, m_at, v_at, None, clip, kept_parameter, step_size, correction,
                gradient_share, beta2, square_share, eps,
            )  # fmt: skip
            if follows_here > 0:
                _average(t_at, p, None, kept_teacher)
        else:
            inside = at < size
            p = _adamw(
                p_at, g_at, m_at, v_at, inside, clip, kept_parameter, step_size, correction,
                gradient_share, beta2, square_share, eps,
            )  # fmt: skip
            if follows_here > 0:
                _average(t_at, p, inside, kept_teacher)
