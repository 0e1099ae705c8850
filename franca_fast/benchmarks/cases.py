"""What is timed: the clustering operators and their baselines, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from franca_fast.ops import (
    clustering_cross_entropy,
    sinkhorn_knopp,
    sinkhorn_potentials,
    sinkhorn_targets,
    weight_norm_scores,
)

TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.06, 0.1
NESTED = (8192, 16384, 32768, 65536, 131072)
WIDTHS = {
    "5x8": (8,) * 5,  # nothing but the overhead of a call
    "5x512": (512,) * 5,
    "8192": (8192,),
    "131072": (131072,),
    "nested": NESTED,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Call = Callable[[Any], object]


@dataclass
class Case:
    """One work.

    Attributes:
        name: What is done, and at which size.
        make: Gives a fresh set of inputs.
        variants: What to run on them, by name; "eager" is what the others are compared with.
        logits_bytes: Size of the logits of one side, in float32.
        bytes_moved: Least traffic of memory: three reads of the logits for Sinkhorn-Knopp (four on
            a GPU); both sides twice, and the gradient once, for the loss; for the scores of a head,
            themselves once and their gradient twice.
    """

    name: str
    make: Callable[[], Any]
    variants: dict[str, Call]
    logits_bytes: int
    bytes_moved: int


def eager_sinkhorn(heads: list[Tensor], n_iterations: int = 3) -> list[Tensor]:
    """The published loop on float32 assignments, operation by operation, one head at a time."""
    results = []
    for z in heads:
        q = torch.exp(z.float() / TEACHER_TEMPERATURE).t()
        n_prototypes, n_rows = q.shape
        for _ in range(n_iterations):
            q /= torch.sum(q, dim=1, keepdim=True)
            q /= n_prototypes
            q /= torch.sum(q, dim=0, keepdim=True)
            q /= n_rows
        q *= n_rows
        results.append(q.t())
    return results


def eager_loss(students: list[Tensor], targets: list[Tensor]) -> Tensor:
    """The published cross-entropy between student scores and stored assignments."""
    loss = students[0].new_zeros((), dtype=torch.float32)
    for s, q in zip(students, targets, strict=True):
        log_softmax = F.log_softmax(s.float() / STUDENT_TEMPERATURE, dim=-1)
        loss = loss - torch.sum(q * log_softmax, dim=-1).mean()
    return loss


def make_logits(
    n_rows: int, widths: tuple[int, ...], dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Random scores; at this spread the published loop neither over- nor underflows."""
    return [torch.randn(n_rows, k, device=device).mul_(0.3).to(dtype) for k in widths]


def sinkhorn_case(
    n_rows: int, widths: str, dtype: str, with_compile: bool, device: str = "cpu"
) -> Case:
    """Three iterations for all heads: potentials, or assignments as the published loop gives."""
    variants: dict[str, Call] = {"eager": eager_sinkhorn}
    if with_compile:
        variants["compiled"] = torch.compile(eager_sinkhorn, dynamic=False)
    variants["potentials"] = lambda z: sinkhorn_potentials(z, TEACHER_TEMPERATURE)
    variants["assignments"] = lambda z: sinkhorn_knopp(z, TEACHER_TEMPERATURE)
    columns = WIDTHS[widths]
    n_reads = 3 if device == "cpu" else 4
    return Case(
        f"sinkhorn {dtype} N={n_rows} K={widths}",
        lambda: make_logits(n_rows, columns, DTYPES[dtype], device),
        variants,
        4 * n_rows * sum(columns),
        n_reads * DTYPES[dtype].itemsize * n_rows * sum(columns),
    )


class _AsResult(torch.autograd.Function):
    """A leaf as if another operator had just computed it, which the loss may then overwrite."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor) -> torch.Tensor:
        return leaf.data

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


as_result = _AsResult.apply


def loss_case(
    n_rows: int, widths: str, dtype: str, with_compile: bool, device: str = "cpu"
) -> Case:
    """Loss and gradient. The baseline gets its targets ready-made; ours rebuilds them.

    "fused" takes new memory for the gradients, "in place" writes them over the student's logits,
    as training does.
    """
    columns = WIDTHS[widths]

    def make() -> Any:
        teacher, student = (make_logits(n_rows, columns, DTYPES[dtype], device) for _ in range(2))
        targets = sinkhorn_targets(teacher, TEACHER_TEMPERATURE)
        assignments = sinkhorn_knopp(teacher, TEACHER_TEMPERATURE)
        return [s.requires_grad_() for s in student], targets, assignments

    def fused(inputs: Any, overwrite: bool) -> object:
        student, targets, _ = inputs
        scores = [as_result(s) for s in student] if overwrite else student
        loss = clustering_cross_entropy(
            scores,
            targets,
            student_temperature=STUDENT_TEMPERATURE,
            overwrite_student=overwrite,
        )
        return torch.autograd.grad(loss.sum(), scores)

    compiled_loss = torch.compile(eager_loss, dynamic=False)
    variants: dict[str, Call] = {
        "eager": lambda inputs: torch.autograd.grad(eager_loss(inputs[0], inputs[2]), inputs[0])
    }
    if with_compile:
        variants["compiled"] = lambda inputs: torch.autograd.grad(
            compiled_loss(inputs[0], inputs[2]), inputs[0]
        )
    variants["fused"] = lambda inputs: fused(inputs, False)
    variants["in place"] = lambda inputs: fused(inputs, True)
    return Case(
        f"loss fwd+bwd {dtype} N={n_rows} K={widths}",
        make,
        variants,
        4 * n_rows * sum(columns),
        5 * DTYPES[dtype].itemsize * n_rows * sum(columns),
    )


def eager_scores(features: list[Tensor], v: list[Tensor], g: list[Tensor]) -> list[Tensor]:
    """PyTorch's weight norm and a linear layer for each head."""
    triples = zip(features, v, g, strict=True)
    return [F.linear(x, torch._weight_norm(b, a[:, None], 0).to(x.dtype)) for x, b, a in triples]


def scores_case(
    n_rows: int, widths: str, dtype: str, with_compile: bool, device: str = "cpu"
) -> Case:
    """Scores of features in a dtype against float32 prototypes, and the gradients of all three."""
    columns, width = WIDTHS[widths], 256

    def make() -> Any:
        x = [torch.randn(n_rows, width, device=device).to(DTYPES[dtype]) for _ in columns]
        v = [torch.randn(k, width, device=device).mul_(0.02) for k in columns]
        leaves = [x, v, [torch.ones(k, device=device) for k in columns]]
        for leaf in (leaf for part in leaves for leaf in part):
            leaf.requires_grad_()
        return leaves, make_logits(n_rows, columns, DTYPES[dtype], device)

    def differentiated(scores: Callable[..., list[Tensor]]) -> Call:
        def run(inputs: Any) -> object:
            leaves, gradients = inputs
            flat = [leaf for part in leaves for leaf in part]
            return torch.autograd.grad(scores(*leaves), flat, gradients)

        return run

    variants = {"eager": differentiated(eager_scores)}
    if with_compile:
        variants["compiled"] = differentiated(torch.compile(eager_scores, dynamic=False))
    variants["fused"] = differentiated(lambda *leaves: list(map(weight_norm_scores, *leaves)))
    return Case(
        f"scores fwd+bwd {dtype} N={n_rows} K={widths}",
        make,
        variants,
        4 * n_rows * sum(columns),
        3 * DTYPES[dtype].itemsize * n_rows * sum(columns),
    )
