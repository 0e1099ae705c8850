"""One step of AdamW and of the teacher's moving average, in one pass over the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast.backends import choose
from franca_fast.backends.contracts import AdamWProblem
from franca_fast.errors import InputError
from franca_fast.ops import _checks
from franca_fast.ops._library import define

_TRAINED = (torch.float32, torch.float64)


def adamw_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lrs: Sequence[float],
    weight_decays: Sequence[float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip_factors: Tensor | None = None,
    modules: Sequence[int] | None = None,
    teachers: Sequence[Tensor | None] | None = None,
    momentum: float = 0.0,
    finite: Tensor | None = None,
) -> None:
    """AdamW (arXiv 1711.05101) with clipped gradients, and the teacher after it, in place.

    With n the number of the step, for every tensor:

        g = clip_factors[module] * gradient
        p <- (1 - lr * weight_decay) * p
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        p <- p - lr / (1 - beta1^n) * m / (sqrt(v / (1 - beta2^n)) + eps)
        teacher <- momentum * teacher + (1 - momentum) * p

    Everything is read and written once, the gradients are only read, and no memory of the size of
    the tensors is taken. The moments and steps are those of `torch.optim.AdamW` with `fused=True`
    and are computed as there. Where `finite` is false nothing changes, without the host reading it.
    Results do not depend on the number of threads.

    Args:
        parameters: p, float32 (or float64, on the reference backend), on one device, contiguous.
            Shards of parameters are parameters.
        gradients: Of the same shapes and dtype.
        exp_avgs: m, likewise, contiguous.
        exp_avg_sqs: v, likewise, contiguous.
        steps: n before this step, a float32 scalar on the device for each parameter.
        lrs: A learning rate for each parameter.
        weight_decays: A decoupled weight decay for each parameter.
        betas: beta1 and beta2, at least 0 and below 1.
        eps: Added to the denominator.
        clip_factors: [modules], of the parameters' dtype and device. Default: 1.
        modules: For each parameter, the index of its clip factor. Needed with clip_factors.
        teachers: For each parameter, what follows it, of its shape and dtype and contiguous, or
            None. Default: no teachers.
        momentum: Share of the teacher that stays, 0 to 1.
        finite: Bool scalar on the device. Default: true.

    Raises:
        InputError: Naming the argument that is wrong; nothing is changed.

    Example:
        >>> import torch, franca_fast as ff
        >>> p, g, teacher = torch.ones(2), torch.tensor([0.5, -2.0]), torch.zeros(2)
        >>> m, v, step = torch.zeros(2), torch.zeros(2), torch.zeros(())
        >>> ff.ops.adamw_update(
        ...     [p], [g], [m], [v], [step], lrs=[0.25], weight_decays=[0.0],
        ...     teachers=[teacher], momentum=0.5,
        ... )
        >>> p, teacher, step
        (tensor([0.7500, 1.2500]), tensor([0.3750, 0.6250]), tensor(1.))
    """
    p = _tensors("parameters", parameters)
    if not p:
        return
    followers = [None] * len(p) if teachers is None else list(teachers)
    problem = AdamWProblem(
        p,
        [g.contiguous() for g in _like("gradients", gradients, p, changed=False)],
        _like("exp_avgs", exp_avgs, p, changed=True),
        _like("exp_avg_sqs", exp_avg_sqs, p, changed=True),
        _steps(steps, p),
        _teachers(followers, p),
        _numbers("lrs", lrs, len(p)),
        _numbers("weight_decays", weight_decays, len(p)),
        _modules(modules, clip_factors, p),
        None if clip_factors is None else clip_factors.contiguous(),
        *_betas(betas),
        _checks.real_number("eps", eps, "a number"),
        _share("momentum", momentum),
        _finite(finite, p[0]),
    )
    with torch.no_grad():
        _update(*problem)


def _tensors(name: str, given: Sequence[Tensor]) -> list[Tensor]:
    tensors = _checks.as_tensors(name, given, "a tensor")
    for i, x in enumerate(tensors):
        kind = (x.dtype, x.device)
        first = tensors[0]
        if x.dtype not in _TRAINED or kind != (first.dtype, first.device) or not _packed(x):
            raise InputError(
                f"{name}[{i}]: {_checks.described(x)}; accepted: contiguous tensors, all of "
                "float32 or all of float64, on one device"
            )
    return tensors


def _packed(x: Tensor) -> bool:
    return x.layout is torch.strided and x.is_contiguous()


def _like(name: str, given: Sequence[Tensor], p: list[Tensor], changed: bool) -> list[Tensor]:
    tensors = _checks.as_tensors(name, given, "a tensor")
    _same_number(name, tensors, p)
    for i, (x, like) in enumerate(zip(tensors, p, strict=True)):
        _same_form(name, i, x, like, changed)
    return tensors


def _same_number(name: str, given: Sequence[object], p: list[Tensor]) -> None:
    if len(given) != len(p):
        raise InputError(f"{name}: {len(given)} entries; accepted: {len(p)}, as parameters")


def _same_form(name: str, i: int, x: Tensor, like: Tensor, changed: bool) -> None:
    same = x.shape == like.shape and x.dtype == like.dtype and x.device == like.device
    if not same or x.layout is not torch.strided or (changed and not x.is_contiguous()):
        raise InputError(
            f"{name}[{i}]: {_checks.described(x)}; accepted: as the parameter, shape "
            f"{tuple(like.shape)}, {like.dtype} on {like.device}{', contiguous' * changed}"
        )


def _teachers(given: Sequence[Tensor | None], p: list[Tensor]) -> list[Tensor | None]:
    _same_number("teachers", given, p)
    for i, (teacher, like) in enumerate(zip(given, p, strict=True)):
        if teacher is not None:
            _checks.as_tensor(f"teachers[{i}]", teacher, "a tensor or None")
            _same_form("teachers", i, teacher, like, changed=True)
    return list(given)


def _steps(given: Sequence[Tensor], p: list[Tensor]) -> list[Tensor]:
    steps = _checks.as_tensors("steps", given, "a scalar tensor")
    _same_number("steps", steps, p)
    for i, step in enumerate(steps):
        if step.dim() or step.dtype != torch.float32 or step.device != p[0].device:
            raise InputError(
                f"steps[{i}]: {_checks.described(step)}; accepted: shape (), torch.float32 on "
                f"{p[0].device}"
            )
    return steps


def _numbers(name: str, given: Sequence[float], n: int) -> list[float]:
    if not _checks.is_sequence(given) or len(given) != n:
        raise InputError(f"{name}: {_checks.described(given)}; accepted: {n} numbers")
    accepted = "a number"
    return [_checks.real_number(f"{name}[{i}]", x, accepted) for i, x in enumerate(given)]


def _modules(given: Sequence[int] | None, factors: Tensor | None, p: list[Tensor]) -> list[int]:
    if factors is None:
        return [0] * len(p)
    _checks.as_tensor("clip_factors", factors, "a tensor [modules]")
    if factors.dim() != 1 or factors.dtype != p[0].dtype or factors.device != p[0].device:
        raise InputError(
            f"clip_factors: {_checks.described(factors)}; accepted: shape [modules], "
            f"{p[0].dtype} on {p[0].device}"
        )
    accepted = f"for each of {len(p)} parameters an integer from 0 to {len(factors) - 1}"
    if not isinstance(given, Sequence) or len(given) != len(p):
        raise InputError(f"modules: {_checks.described(given)}; accepted: {accepted}")
    modules = list(given)
    for i, module in enumerate(modules):
        if type(module) is not int or not 0 <= module < len(factors):
            raise InputError(f"modules[{i}]: {module!r}; accepted: {accepted}")
    return modules


def _betas(given: tuple[float, float]) -> tuple[float, float]:
    if not _checks.is_sequence(given) or len(given) != 2:
        raise InputError(f"betas: {_checks.described(given)}; accepted: two numbers")
    return _share("betas[0]", given[0], True), _share("betas[1]", given[1], True)


def _share(name: str, given: float, below_one: bool = False) -> float:
    accepted = "a number from 0 to below 1" if below_one else "a number from 0 to 1"
    share = _checks.real_number(name, given, accepted)
    if not 0 <= share <= 1 or (below_one and share == 1):
        raise InputError(f"{name}: {share}; accepted: {accepted}")
    return share


def _finite(given: Tensor | None, p: Tensor) -> Tensor:
    if given is None:
        return torch.ones((), dtype=torch.bool, device=p.device)
    finite = _checks.as_tensor("finite", given, "a bool scalar tensor")
    if finite.dim() or finite.dtype != torch.bool or finite.device != p.device:
        raise InputError(
            f"finite: {_checks.described(finite)}; accepted: shape (), torch.bool on {p.device}"
        )
    return finite


def _impl(*arguments: Any) -> None:
    problem = AdamWProblem(*arguments)
    choose("adamw_update", problem.parameters[0]).update(problem)
    changed = (problem.parameters, *problem[2:6])
    # Kernels write to addresses, of which PyTorch knows nothing.
    torch.autograd.graph.increment_version([x for xs in changed for x in xs if x is not None])


_update = define(
    "adamw_update(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, Tensor(e!)?[] teachers, float[] lrs, "
    "float[] weight_decays, int[] modules, Tensor? clip_factors, float beta1, float beta2, "
    "float eps, float momentum, Tensor finite) -> ()",
    _impl,
    lambda *problem: None,
)
