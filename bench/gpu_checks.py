"""Operators on the GPU against float64, for every backend that runs there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import franca_fast as ff

TEMPERATURE = 0.06
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows, rows that count, columns of the heads.
SHAPES = (
    (1, 1, (1,)),
    (7, 5, (5, 37, 2060)),
    (64, 64, (8192, 16384)),
    (131, 130, (40, 8200, 130)),
    (300, 300, (65536, 131072, 9)),
)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Distance to the reference over its size; not a number where it has none."""
    finite = torch.isfinite(expected)
    if not torch.equal(torch.isfinite(value), finite):
        return float("nan")
    difference = (value.double() - expected.double())[finite]
    return float(difference.norm() / expected.double()[finite].norm().clamp_min(1e-30))


def _heads(n_rows: int, widths: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(n_rows, k, device="cuda").mul_(0.3).to(dtype) for k in widths]


def check_sinkhorn(backend: str) -> Iterator[tuple[str, float]]:
    """Error of the potentials, and whether two calls give the same bits."""
    for dtype in DTYPES:
        for n_rows, n_valid, widths in SHAPES:
            z = _heads(n_rows, widths, dtype)
            wide = [x.double() for x in z]
            with ff.use_backend("torch"):
                expected = ff.ops.sinkhorn_potentials(wide, TEMPERATURE, n_valid=n_valid).prototype
            with ff.use_backend(backend):
                first = ff.ops.sinkhorn_potentials(z, TEMPERATURE, n_valid=n_valid)
                second = ff.ops.sinkhorn_potentials(z, TEMPERATURE, n_valid=n_valid)
            name = f"sinkhorn {backend} {dtype} N={n_rows} K={sum(widths)}"
            worst = max(map(relative_error, first.prototype, expected))
            same = all(map(torch.equal, first.prototype, second.prototype))
            yield name, worst if same else float("nan")


def check_loss(backend: str) -> Iterator[tuple[str, float]]:
    """Error of the loss and of its gradient."""
    for dtype in DTYPES:
        for n_rows, _, widths in SHAPES[:4]:
            teacher, student = _heads(n_rows, widths, dtype), _heads(n_rows + 3, widths, dtype)
            rows = torch.randint(n_rows, (n_rows + 3, 2), device="cuda")

            def loss(
                s: list[Tensor], z: list[Tensor], rows: Tensor = rows
            ) -> tuple[list[Tensor], list[Tensor]]:
                s = [x.detach().requires_grad_() for x in s]
                potentials = ff.ops.sinkhorn_potentials(z, TEMPERATURE)
                value = ff.ops.clustering_cross_entropy(
                    s, z, potentials, teacher_temperature=TEMPERATURE, teacher_rows=rows
                )
                return [value.detach()], list(torch.autograd.grad(value.sum(), s))

            with ff.use_backend("torch"):
                expected = loss([x.double() for x in student], [x.double() for x in teacher])
            with ff.use_backend(backend):
                value, gradient = loss(student, teacher)
            name = f"loss {backend} {dtype} N={n_rows} K={sum(widths)}"
            yield name, relative_error(value[0], expected[0][0])
            yield name + " gradient", max(map(relative_error, gradient, expected[1]))


def check_scores(backend: str) -> Iterator[tuple[str, float]]:
    """Error of the scores."""
    for dtype in DTYPES[1:]:
        for n_rows, depth, widths in ((1, 8, (3,)), (70, 72, (130, 2060)), (300, 256, (8192, 66))):
            x = [torch.randn(n_rows, depth, device="cuda", dtype=dtype) for _ in widths]
            v = [torch.randn(k, depth, device="cuda", dtype=dtype) for k in widths]
            scales = [torch.rand(k, device="cuda") for k in widths]
            with ff.use_backend(backend):
                scores = ff.ops.prototype_scores(x, v, scales=scales)
            triples = zip(x, v, scales, strict=True)
            expected = [(a.double() @ b.double().t()) * c.double() for a, b, c in triples]
            name = f"scores {backend} {dtype} N={n_rows} K={sum(widths)}"
            yield name, max(map(relative_error, scores, expected))


def _factored(
    n_rows: int, depth: int, widths: tuple[int, ...], dtype: torch.dtype
) -> ff.ops.FactoredScores:
    x = tuple(torch.randn(n_rows, depth, device="cuda").to(dtype) for _ in widths)
    v = tuple((torch.randn(k, depth, device="cuda") / depth**0.5).to(dtype) for k in widths)
    return ff.ops.FactoredScores(x, v, tuple(torch.rand(k, device="cuda") for k in widths))


def _widened(scores: ff.ops.FactoredScores) -> ff.ops.FactoredScores:
    return ff.ops.FactoredScores(*(tuple(m.double() for m in part) for part in scores))


def check_streamed(backend: str) -> Iterator[tuple[str, float]]:
    """Error of potentials, loss and gradients of scores that are never stored."""
    for dtype in DTYPES[1:]:
        for n_rows, depth, widths in ((1, 8, (3,)), (70, 72, (130, 2060)), (300, 256, (8192, 66))):
            sides = [_factored(n_rows, depth, widths, dtype) for _ in range(2)]

            def loss(scores: list[ff.ops.FactoredScores]) -> tuple[list[Tensor], list[Tensor]]:
                student, teacher = scores
                leaves = [m.detach().requires_grad_() for part in student for m in part]
                n = len(student.scales)
                parts = (leaves[:n], leaves[n : 2 * n], leaves[2 * n :])
                student = ff.ops.FactoredScores(*map(tuple, parts))
                potentials = ff.ops.sinkhorn_potentials(teacher, TEMPERATURE)
                value = ff.ops.clustering_cross_entropy(
                    student, teacher, potentials, teacher_temperature=TEMPERATURE
                )
                results = [*potentials.prototype, value.detach()]
                return results, list(torch.autograd.grad(value.sum(), leaves))

            with ff.use_backend("torch"):
                expected = loss([_widened(side) for side in sides])
            with ff.use_backend(backend):
                results = loss(sides)
            name = f"streamed {backend} {dtype} N={n_rows} K={sum(widths)}"
            yield name, max(map(relative_error, results[0], expected[0]))
            yield name + " gradient", max(map(relative_error, results[1], expected[1]))


def check_graph(backend: str) -> Iterator[tuple[str, float]]:
    """A captured graph must give what the calls give, on new inputs as well."""
    z = _heads(64, (2048, 300), torch.bfloat16)
    with ff.use_backend(backend):
        ff.ops.sinkhorn_potentials(z, TEMPERATURE)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ff.ops.sinkhorn_potentials(z, TEMPERATURE)
        for x in z:
            x.copy_(torch.randn_like(x) * 0.3)
        graph.replay()
        expected = ff.ops.sinkhorn_potentials(z, TEMPERATURE)
    worst = max(map(relative_error, captured.prototype, expected.prototype))
    yield f"graph {backend}", worst


def tolerance(name: str) -> float:
    """Largest error that passes."""
    stored_in_16_bits = "gradient" in name or name.startswith("scores")
    if stored_in_16_bits and "bfloat16" in name:
        return 1e-2 if name.startswith("streamed") else 4e-3
    return 1e-3 if stored_in_16_bits else 2e-5


CHECKS = {
    "sinkhorn": (check_sinkhorn, check_graph),
    "clustering_cross_entropy": (check_loss,),
    "prototype_scores": (check_scores,),
    "streamed_clustering": (check_streamed,),
}
