"""What is timed on a CPU: the clustering operators and their baselines, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import franca_fast as ff

TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.06, 0.1
NESTED = (8192, 16384, 32768, 65536, 131072)
WIDTHS = {"8192": (8192,), "131072": (131072,), "nested": NESTED}
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
    """

    name: str
    make: Callable[[], Any]
    variants: dict[str, Call]
    logits_bytes: int


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
    loss = torch.zeros(())
    for s, q in zip(students, targets, strict=True):
        log_softmax = F.log_softmax(s.float() / STUDENT_TEMPERATURE, dim=-1)
        loss = loss - torch.sum(q * log_softmax, dim=-1).mean()
    return loss


def make_logits(n_rows: int, widths: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Random scores; at this spread the published loop neither over- nor underflows."""
    return [torch.randn(n_rows, k).mul_(0.3).to(dtype) for k in widths]


def on_cpu_backend(call: Call) -> Call:
    """The call with the compiled core asked for, so that nothing else is measured by mistake."""

    def run(inputs: Any) -> object:
        with ff.use_backend("cpu"):
            return call(inputs)

    return run


def sinkhorn_case(n_rows: int, widths: str, dtype: str, with_compile: bool) -> Case:
    """Three iterations for all heads: potentials, or assignments as the published loop gives."""
    variants: dict[str, Call] = {"eager": eager_sinkhorn}
    if with_compile:
        variants["compiled"] = torch.compile(eager_sinkhorn, dynamic=False)
    variants["potentials"] = on_cpu_backend(
        lambda z: ff.ops.sinkhorn_potentials(z, TEACHER_TEMPERATURE)
    )
    variants["assignments"] = on_cpu_backend(
        lambda z: ff.ops.sinkhorn_knopp(z, TEACHER_TEMPERATURE)
    )
    columns = WIDTHS[widths]
    return Case(
        f"sinkhorn {dtype} N={n_rows} K={widths}",
        lambda: make_logits(n_rows, columns, DTYPES[dtype]),
        variants,
        4 * n_rows * sum(columns),
    )


def loss_case(n_rows: int, widths: str, dtype: str, with_compile: bool) -> Case:
    """Loss and gradient. The baseline gets its targets ready-made; ours rebuilds them."""
    columns = WIDTHS[widths]

    def make() -> Any:
        teacher = make_logits(n_rows, columns, DTYPES[dtype])
        student = [s.requires_grad_() for s in make_logits(n_rows, columns, DTYPES[dtype])]
        potentials = ff.ops.sinkhorn_potentials(teacher, TEACHER_TEMPERATURE)
        return teacher, student, potentials, ff.ops.sinkhorn_knopp(teacher, TEACHER_TEMPERATURE)

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

    compiled_loss = torch.compile(eager_loss, dynamic=False)
    variants: dict[str, Call] = {
        "eager": lambda inputs: torch.autograd.grad(eager_loss(inputs[1], inputs[3]), inputs[1])
    }
    if with_compile:
        variants["compiled"] = lambda inputs: torch.autograd.grad(
            compiled_loss(inputs[1], inputs[3]), inputs[1]
        )
    variants["fused"] = on_cpu_backend(fused)
    return Case(
        f"loss fwd+bwd {dtype} N={n_rows} K={widths}", make, variants, 4 * n_rows * sum(columns)
    )
