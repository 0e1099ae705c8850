"""What is timed on a GPU: each work with its baselines, its bytes and its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import franca_fast as ff

TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.06, 0.1
NESTED = (8192, 16384, 32768, 65536, 131072)
DEPTH = 256

Call = Callable[[Any], object]


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


def eager_sinkhorn(heads: list[Tensor], temperature: float, n_iterations: int = 3) -> list[Tensor]:
    """The usual loop on assignments in float32, one head after the other."""
    results = []
    for z in heads:
        q = torch.exp(z.float() / temperature).t()
        n_prototypes, n_rows = q.shape
        q /= q.sum()
        for _ in range(n_iterations):
            q /= q.sum(dim=1, keepdim=True)
            q /= n_prototypes
            q /= q.sum(dim=0, keepdim=True)
            q /= n_rows
        results.append((q * n_rows).t())
    return results


def eager_loss(students: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Cross-entropy between stored targets and student scores."""
    loss = students[0].new_zeros((), dtype=torch.float32)
    for s, q in zip(students, targets, strict=True):
        log_softmax = torch.log_softmax(s.float() / STUDENT_TEMPERATURE, dim=1)
        loss = loss - (q * log_softmax).sum(dim=1).mean()
    return loss


def with_backend(name: str, call: Call) -> Call:
    """The call with one backend asked for."""

    def run(inputs: Any) -> object:
        with ff.use_backend(name):
            return call(inputs)

    return run


def logits(n_rows: int, widths: tuple[int, ...]) -> list[Tensor]:
    """Random bfloat16 scores on the GPU."""
    return [torch.randn(n_rows, k, device="cuda", dtype=torch.bfloat16) * 0.3 for k in widths]


def sinkhorn_case(n_rows: int, widths: tuple[int, ...], backends: list[str]) -> Case:
    """Potentials of all heads; four reads of the logits count."""
    variants: dict[str, Call] = {
        "eager": lambda z: eager_sinkhorn(z, TEACHER_TEMPERATURE),
        "compiled": torch.compile(lambda z: eager_sinkhorn(z, TEACHER_TEMPERATURE), dynamic=False),
    }
    for name in backends:
        variants[name] = with_backend(
            name, lambda z: ff.ops.sinkhorn_potentials(z, TEACHER_TEMPERATURE)
        )
    size = 4 * 2 * n_rows * sum(widths)
    return Case(
        f"sinkhorn N={n_rows} K={sum(widths)}", lambda: logits(n_rows, widths), variants, size
    )


def _loss_inputs(n_rows: int, widths: tuple[int, ...]) -> Any:
    teacher, student = logits(n_rows, widths), logits(n_rows, widths)
    potentials = ff.ops.sinkhorn_potentials(teacher, TEACHER_TEMPERATURE)
    return teacher, [s.requires_grad_() for s in student], potentials


def loss_case(n_rows: int, widths: tuple[int, ...], backends: list[str]) -> Case:
    """Loss and gradient: both sides read twice, the gradient written once."""

    def eager(inputs: Any) -> object:
        teacher, student, potentials = inputs
        pairs = zip(teacher, potentials.prototype, potentials.row, strict=True)
        targets = [
            torch.exp(z.float() / TEACHER_TEMPERATURE + a + b.unsqueeze(1)) for z, a, b in pairs
        ]
        return torch.autograd.grad(eager_loss(student, targets), student)

    def fused(inputs: Any) -> object:
        teacher, student, potentials = inputs
        loss = ff.ops.clustering_cross_entropy(
            student,
            teacher,
            potentials,
            teacher_temperature=TEACHER_TEMPERATURE,
            student_temperature=STUDENT_TEMPERATURE,
        )
        return torch.autograd.grad(loss.sum(), student)

    variants: dict[str, Call] = {"eager": eager}
    variants |= {name: with_backend(name, fused) for name in backends}
    return Case(
        f"loss fwd+bwd N={n_rows} K={sum(widths)}",
        lambda: _loss_inputs(n_rows, widths),
        variants,
        5 * 2 * n_rows * sum(widths),
    )


def _factors(n_rows: int, widths: tuple[int, ...]) -> Any:
    features = [torch.randn(n_rows, DEPTH, device="cuda", dtype=torch.bfloat16) for _ in widths]
    prototypes = [torch.randn(k, DEPTH, device="cuda", dtype=torch.bfloat16) for k in widths]
    return features, prototypes, [torch.rand(k, device="cuda") / 16 for k in widths]


def scores_case(n_rows: int, widths: tuple[int, ...], backends: list[str]) -> Case:
    """Scaled scores of all heads, beside one library product per head and a scaling."""

    def library(inputs: Any) -> object:
        return [(x @ v.t()).mul_(s) for x, v, s in zip(*inputs, strict=True)]

    def fused(inputs: Any) -> object:
        return ff.ops.prototype_scores(inputs[0], inputs[1], scales=inputs[2])

    variants: dict[str, Call] = {"eager": library}
    variants |= {name: with_backend(name, fused) for name in backends}
    columns = sum(widths)
    return Case(
        f"scores N={n_rows} K={columns} C={DEPTH}",
        lambda: _factors(n_rows, widths),
        variants,
        2 * (n_rows * columns + columns * DEPTH),
        2 * n_rows * columns * DEPTH,
    )


def _factored(n_rows: int, widths: tuple[int, ...]) -> ff.ops.FactoredScores:
    features, prototypes, scales = _factors(n_rows, widths)
    return ff.ops.FactoredScores(
        tuple(x.requires_grad_() for x in features),
        tuple(v.requires_grad_() for v in prototypes),
        tuple(scales),
    )


def _streamed_inputs(n_rows: int, widths: tuple[int, ...]) -> Any:
    student, teacher = _factored(n_rows, widths), _factored(n_rows, widths)
    with torch.no_grad():
        potentials = ff.ops.sinkhorn_potentials(teacher, TEACHER_TEMPERATURE)
    return student, teacher, potentials


def streamed_case(n_rows: int, widths: tuple[int, ...], backends: list[str]) -> Case:
    """Loss and gradient without stored scores: 4 recomputed products and 2 for the gradient."""

    def fused(inputs: Any) -> object:
        student, teacher, potentials = inputs
        loss = ff.ops.clustering_cross_entropy(
            student, teacher, potentials, teacher_temperature=TEACHER_TEMPERATURE
        )
        return torch.autograd.grad(loss.sum(), [*student.features, *student.prototypes])

    # The torch backend goes first: it is the baseline.
    variants = {name: with_backend(name, fused) for name in sorted(backends, reverse=True)}
    operations = 6 * 2 * n_rows * sum(widths) * DEPTH
    return Case(
        f"streamed loss fwd+bwd N={n_rows} K={sum(widths)} C={DEPTH}",
        lambda: _streamed_inputs(n_rows, widths),
        variants,
        0,
        operations,
    )


def cases(backends: Callable[[str], list[str]], quick: bool) -> Iterator[Case]:
    """All works; `backends` names those that offer an operator here."""
    widths = NESTED[:2] if quick else NESTED
    for n_rows in (64, 512) if quick else (64, 3072):
        yield sinkhorn_case(n_rows, widths, backends("sinkhorn"))
        yield loss_case(n_rows, widths, backends("clustering_cross_entropy"))
        yield scores_case(n_rows, widths, backends("prototype_scores"))
        yield streamed_case(n_rows, widths, backends("streamed_clustering"))
