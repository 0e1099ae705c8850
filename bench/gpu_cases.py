"""What bench/gpu.py times: each work with its baselines, its bytes and its operations.

To add a work, write a function that takes a `Setting` and yields `Case`s, and append it to `WORKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import franca_fast as ff
from franca_fast.backends import registry
from franca_fast.benchmarks.cases import (
    STUDENT_TEMPERATURE,
    TEACHER_TEMPERATURE,
    eager_loss,
    eager_sinkhorn,
)

Call = Callable[[Any], object]


@dataclass(frozen=True)
class Setting:
    """Where to run, and at which sizes.

    Attributes:
        device: Device of all inputs, which is also the default device while cases are made.
        rows: Numbers of rows N to measure at.
        widths: Prototypes of each nested head.
        depth: Length of the bottleneck features.
        compile: Whether torch.compile of the baseline is a baseline, too.
    """

    device: torch.device
    rows: tuple[int, ...] = (64, 3072)
    widths: tuple[int, ...] = (8192, 16384, 32768, 65536, 131072)
    depth: int = 256
    compile: bool = True

    def backends(self, operator: str, dtype: torch.dtype = torch.bfloat16) -> list[str]:
        """Backends that run an operator here, the reference first."""
        names = registry.available(operator, torch.empty(0, dtype=dtype, device=self.device))
        return sorted(names, key=lambda name: name != "torch")

    def compiled(self, call: Call) -> dict[str, Call]:
        """The baseline under torch.compile, as a variant."""
        return {"compiled": torch.compile(call, dynamic=False)} if self.compile else {}


@dataclass
class Case:
    """One work.

    Attributes:
        name: What is done, and at which size.
        make: Gives a fresh set of inputs.
        variants: What to run on them, by name; the first is what the others are compared to.
        bytes_moved: Least traffic of device memory, for the roofline.
        operations: Floating-point operations of the matrix products, 0 without any.
    """

    name: str
    make: Callable[[], Any]
    variants: dict[str, Call] = field(default_factory=dict)
    bytes_moved: int = 0
    operations: int = 0


def with_backend(name: str, call: Call) -> Call:
    """The call with one backend asked for."""

    def run(inputs: Any) -> object:
        with ff.use_backend(name):
            return call(inputs)

    return run


def logits(n_rows: int, widths: tuple[int, ...]) -> list[Tensor]:
    """Random bfloat16 scores; at this spread the published loop neither over- nor underflows."""
    return [torch.randn(n_rows, k, dtype=torch.bfloat16).mul_(0.3) for k in widths]


def sinkhorn_cases(setting: Setting) -> Iterator[Case]:
    """Potentials of all heads; four reads of the logits count."""
    for n_rows in setting.rows:
        variants = {"eager": eager_sinkhorn, **setting.compiled(eager_sinkhorn)}
        for name in setting.backends("sinkhorn"):
            variants[name] = with_backend(
                name, lambda z: ff.ops.sinkhorn_potentials(z, TEACHER_TEMPERATURE)
            )
        yield Case(
            f"sinkhorn N={n_rows} K={sum(setting.widths)}",
            lambda n_rows=n_rows: logits(n_rows, setting.widths),
            variants,
            4 * 2 * n_rows * sum(setting.widths),
        )


def _loss_inputs(n_rows: int, widths: tuple[int, ...]) -> Any:
    teacher, student = logits(n_rows, widths), logits(n_rows, widths)
    potentials = ff.ops.sinkhorn_potentials(teacher, TEACHER_TEMPERATURE)
    targets = ff.ops.sinkhorn_knopp(teacher, TEACHER_TEMPERATURE)
    return teacher, [s.requires_grad_() for s in student], potentials, targets


def loss_cases(setting: Setting) -> Iterator[Case]:
    """Loss and gradient: both sides read twice, the gradient written once.

    The baseline gets its targets ready-made; ours rebuilds them.
    """

    def eager(inputs: Any) -> object:
        _, student, _, targets = inputs
        return torch.autograd.grad(eager_loss(student, targets), student)

    compiled_loss = setting.compiled(lambda inputs: eager_loss(*inputs))

    def fused(inputs: Any) -> object:
        teacher, student, potentials, _ = inputs
        loss = ff.ops.clustering_cross_entropy(
            student,
            teacher,
            potentials,
            teacher_temperature=TEACHER_TEMPERATURE,
            student_temperature=STUDENT_TEMPERATURE,
        )
        return torch.autograd.grad(loss.sum(), student)

    for n_rows in setting.rows:
        variants: dict[str, Call] = {"eager": eager}
        for name, loss in compiled_loss.items():
            variants[name] = lambda inputs, loss=loss: torch.autograd.grad(
                loss((inputs[1], inputs[3])), inputs[1]
            )
        for name in setting.backends("clustering_cross_entropy"):
            variants[name] = with_backend(name, fused)
        yield Case(
            f"loss fwd+bwd N={n_rows} K={sum(setting.widths)}",
            lambda n_rows=n_rows: _loss_inputs(n_rows, setting.widths),
            variants,
            5 * 2 * n_rows * sum(setting.widths),
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
        variants: dict[str, Call] = {"eager": library, **setting.compiled(library)}
        for name in setting.backends("prototype_scores"):
            variants[name] = with_backend(name, fused)
        yield Case(
            f"scores N={n_rows} K={columns} C={setting.depth}",
            lambda n_rows=n_rows: _factors(n_rows, setting),
            variants,
            2 * (n_rows * columns + (len(setting.widths) * n_rows + columns) * setting.depth),
            2 * n_rows * columns * setting.depth,
        )


def _factored(n_rows: int, setting: Setting) -> ff.ops.FactoredScores:
    features, prototypes, scales = _factors(n_rows, setting)
    return ff.ops.FactoredScores(
        tuple(x.requires_grad_() for x in features),
        tuple(v.requires_grad_() for v in prototypes),
        tuple(scales),
    )


def _streamed_inputs(n_rows: int, setting: Setting) -> Any:
    student, teacher = _factored(n_rows, setting), _factored(n_rows, setting)
    with torch.no_grad():
        potentials = ff.ops.sinkhorn_potentials(teacher, TEACHER_TEMPERATURE)
    return student, teacher, potentials


def streamed_cases(setting: Setting) -> Iterator[Case]:
    """Loss and gradient without stored scores: 4 recomputed products and 2 for the gradient."""

    def fused(inputs: Any) -> object:
        student, teacher, potentials = inputs
        loss = ff.ops.clustering_cross_entropy(
            student, teacher, potentials, teacher_temperature=TEACHER_TEMPERATURE
        )
        return torch.autograd.grad(loss.sum(), [*student.features, *student.prototypes])

    columns = sum(setting.widths)
    for n_rows in setting.rows:
        yield Case(
            f"streamed loss fwd+bwd N={n_rows} K={columns} C={setting.depth}",
            lambda n_rows=n_rows: _streamed_inputs(n_rows, setting),
            {name: with_backend(name, fused) for name in setting.backends("streamed_clustering")},
            0,
            6 * 2 * n_rows * columns * setting.depth,
        )


WORKS: list[Callable[[Setting], Iterator[Case]]] = [
    sinkhorn_cases,
    loss_cases,
    scores_cases,
    streamed_cases,
]


def cases(setting: Setting) -> Iterator[Case]:
    """All works at all sizes."""
    from gpu_attention_cases import attention_cases  # needs what this module defines

    for work in (*WORKS, attention_cases):
        yield from work(setting)
