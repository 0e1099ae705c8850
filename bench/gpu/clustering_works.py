"""What is timed of the clustering: potentials, loss, scores, and both without stored scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import franca_fast as ff
from bench.gpu.case import FEW_ROWS, Call, Case, Setting, compiled
from franca_fast.benchmarks.cases import (
    STUDENT_TEMPERATURE,
    TEACHER_TEMPERATURE,
    as_result,
    eager_loss,
    eager_sinkhorn,
)


def ceiling_cases(setting: Setting) -> Iterator[Case]:
    """What the device reaches: a copy, and a product of matrices of random numbers."""
    size, width = (1 << 30, 8192) if setting.device.type == "cuda" else (1 << 16, 64)

    def pair(*shape: int) -> list[Tensor]:
        return [torch.randn(shape, dtype=torch.bfloat16) for _ in range(2)]

    copy = {"device": lambda given: given[0].copy_(given[1])}
    yield Case("ceiling: copy", lambda: pair(size), copy, 4 * size)
    product = {"device": lambda given: given[0] @ given[1]}
    square = Case("ceiling: bf16 product", lambda: pair(width, width), product)
    square.operations = 2 * width**3
    yield square


def logits(n_rows: int, widths: tuple[int, ...]) -> list[Tensor]:
    """Random bfloat16 scores; at this spread the published loop neither over- nor underflows."""
    return [torch.randn(n_rows, k, dtype=torch.bfloat16).mul_(0.3) for k in widths]


def sinkhorn_cases(setting: Setting) -> Iterator[Case]:
    """Potentials of all heads; four reads of the logits count.

    Few rows may stay on chip from the first read on, and then pass this roofline.
    """

    def fused(heads: Any) -> object:
        return ff.ops.sinkhorn_potentials(heads, TEACHER_TEMPERATURE)

    for n_rows in setting.rows:
        variants: dict[str, Call] = dict.fromkeys(setting.backends("sinkhorn"), fused)
        variants |= {"eager": eager_sinkhorn, "compiled": compiled(eager_sinkhorn, setting)}
        yield Case(
            f"sinkhorn N={n_rows} K={sum(setting.widths)}",
            lambda n_rows=n_rows: logits(n_rows, setting.widths),
            variants,
            4 * 2 * n_rows * sum(setting.widths),
            short=n_rows <= FEW_ROWS,
        )


def _loss_inputs(n_rows: int, widths: tuple[int, ...]) -> Any:
    teacher, student = logits(n_rows, widths), logits(n_rows, widths)
    # By the reference: inputs of a kernel must not come from another kernel under test.
    with ff.use_backend("torch"):
        targets = ff.ops.sinkhorn_targets(teacher, TEACHER_TEMPERATURE)
        assignments = ff.ops.sinkhorn_knopp(teacher, TEACHER_TEMPERATURE)
    return [s.requires_grad_() for s in student], targets, assignments


def loss_cases(setting: Setting) -> Iterator[Case]:
    """Loss and gradient: both sides read twice, the gradient written once.

    The baseline gets its targets ready-made; ours rebuilds them. "in place" writes the gradient
    over the logits, as training does.
    """

    def eager(inputs: Any, loss: Call = lambda inputs: eager_loss(*inputs)) -> object:
        student, _, assignments = inputs
        return torch.autograd.grad(loss((student, assignments)), student)

    whole = compiled(lambda inputs: eager_loss(*inputs), setting)

    def fused(inputs: Any, overwrite: bool = False) -> object:
        student, targets, _ = inputs
        scores = [as_result(s) for s in student] if overwrite else student
        loss = ff.ops.clustering_cross_entropy(
            scores, targets, student_temperature=STUDENT_TEMPERATURE, overwrite_student=overwrite
        )
        return torch.autograd.grad(loss.sum(), scores)

    for n_rows in setting.rows:
        backends = setting.backends("clustering_cross_entropy")
        variants: dict[str, Call] = dict.fromkeys(backends, fused)
        variants |= {"eager": eager, "compiled": lambda inputs: eager(inputs, whole)}
        for name in backends:
            # After the others: it leaves gradients where the logits were.
            variants[f"{name} in place"] = lambda inputs: fused(inputs, True)
        yield Case(
            f"loss fwd+bwd N={n_rows} K={sum(setting.widths)}",
            lambda n_rows=n_rows: _loss_inputs(n_rows, setting.widths),
            variants,
            5 * 2 * n_rows * sum(setting.widths),
            short=n_rows <= FEW_ROWS,
        )


def _factors(n_rows: int, setting: Setting) -> Any:
    depth, dtype = setting.depth, torch.bfloat16
    features = [torch.randn(n_rows, depth, dtype=dtype) for _ in setting.widths]
    prototypes = [torch.randn(k, depth, dtype=dtype) for k in setting.widths]
    return features, prototypes, [torch.rand(k) / depth**0.5 for k in setting.widths]


def scores_cases(setting: Setting) -> Iterator[Case]:
    """Scaled scores of all heads, beside one library product per head and a scaling."""

    def library(inputs: Any) -> object:
        return [(x @ v.t()).mul_(s) for x, v, s in zip(*inputs, strict=True)]

    def fused(inputs: Any) -> object:
        return ff.ops.prototype_scores(inputs[0], inputs[1], scales=inputs[2])

    columns = sum(setting.widths)
    for n_rows in setting.rows:
        names = setting.backends("prototype_scores")
        yield Case(
            f"scores N={n_rows} K={columns} C={setting.depth}",
            lambda n_rows=n_rows: _factors(n_rows, setting),
            dict.fromkeys(names, fused)
            | {
                "library": library,
                "product alone": lambda given: [x @ v.t() for x, v, _ in zip(*given, strict=True)],
                "compiled": compiled(library, setting),
            },
            2 * (n_rows * columns + (len(setting.widths) * n_rows + columns) * setting.depth),
            2 * n_rows * columns * setting.depth,
        )


def _stored(scores: ff.ops.Scores) -> tuple[Tensor, ...]:
    return ff.ops.prototype_scores(scores.values, scores.prototypes, scales=scores.scales)


def _streamed_inputs(n_rows: int, setting: Setting) -> Any:
    student, teacher = (ff.ops.Scores(*_factors(n_rows, setting)) for _ in range(2))
    for leaf in (*student.values, *student.prototypes):
        leaf.requires_grad_()
    with ff.use_backend("torch"), torch.no_grad():
        targets = ff.ops.sinkhorn_targets(_stored(teacher), TEACHER_TEMPERATURE)
    return student, targets._replace(scores=teacher)


def streamed_cases(setting: Setting) -> Iterator[Case]:
    """Loss and gradient without stored scores: 4 recomputed products and 2 for the gradient.

    The baseline stores them.
    """

    def fused(inputs: Any) -> object:
        student, targets = inputs
        loss = ff.ops.clustering_cross_entropy(
            student, targets, student_temperature=STUDENT_TEMPERATURE
        )
        return torch.autograd.grad(loss.sum(), [*student.values, *student.prototypes])

    def stored(inputs: Any) -> object:
        student, targets = inputs
        parts = zip(_stored(targets.scores), *targets.potentials, strict=True)
        q = [torch.exp(z.float() / TEACHER_TEMPERATURE + a + b[:, None]) for z, a, b in parts]
        loss = eager_loss(list(_stored(student)), q)
        return torch.autograd.grad(loss, [*student.values, *student.prototypes])

    columns = sum(setting.widths)
    for n_rows in setting.rows:
        names = setting.backends("streamed_clustering")
        yield Case(
            f"streamed loss fwd+bwd N={n_rows} K={columns} C={setting.depth}",
            lambda n_rows=n_rows: _streamed_inputs(n_rows, setting),
            dict.fromkeys(names, fused) | {"eager": stored},
            0,
            6 * 2 * n_rows * columns * setting.depth,
        )
