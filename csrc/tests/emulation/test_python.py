"""The wrappers in franca_fast/backends/cuda on a module whose kernels run on the emulated device.

Compares them with the torch backend, on CPU tensors: to the wrappers an address is an address.

Usage: test_python.py PATH_OF_MODULE
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

TEMPERATURE = 0.07


def install(path: Path) -> None:
    """Makes the module at `path` the compiled core of franca_fast."""
    import franca_fast

    spec = importlib.util.spec_from_file_location("franca_fast._C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["franca_fast._C"] = module
    franca_fast._C = module
    # The reference is plain torch all the way down.
    franca_fast.use_backend("torch")


def backends(operator: str) -> tuple[ModuleType, ModuleType]:
    """The wrappers under test and the reference."""
    own = importlib.import_module(f"franca_fast.backends.cuda.{operator}")
    return own, importlib.import_module(f"franca_fast.backends.torch.{operator}")


def close(value: Tensor, expected: Tensor, tolerance: float = 2e-4) -> None:
    """Fails unless the two agree."""
    torch.testing.assert_close(value.float(), expected.float(), rtol=tolerance, atol=tolerance)


def check_devices() -> None:
    """Matrices of the expected device are taken, wherever that is, and others refused."""
    from franca_fast.backends._core import pack_heads
    from franca_fast.errors import InputError

    # A device without memory stands for one that is not the CPU.
    elsewhere = torch.device("meta")
    heads = [torch.empty(4, k, device=elsewhere) for k in (3, 8)]
    assert pack_heads(heads, "logits", elsewhere).columns == [3, 8]
    for matrices, device in ((heads, "cpu"), ([heads[0], torch.empty(4, 8)], "meta")):
        try:
            pack_heads(matrices, "logits", torch.device(device))
        except InputError as error:
            assert f"on {device}" in str(error)
        else:
            raise AssertionError("a matrix of another device was taken")


def check_sinkhorn() -> None:
    """Passes, assignments and the joined passes."""
    own, reference = backends("sinkhorn")
    from franca_fast.backends.contracts import Scores

    # Rows further apart than they are long, and columns that are not adjacent.
    logits = Scores([torch.randn(9, 40)[:, :24], torch.randn(13, 9).t()])
    for x, y in zip(
        own.column_logsumexp(logits, TEMPERATURE, 7),
        reference.column_logsumexp(logits, TEMPERATURE, 7),
        strict=True,
    ):
        close(x, y)
    maximum, total = reference.column_logsumexp(logits, TEMPERATURE, 7)
    first = -(maximum + total.log())
    row, mass = own.row_step(logits, TEMPERATURE, first, 7, True)
    expected_row, expected_mass = reference.row_step(logits, TEMPERATURE, first, 7, True)
    close(row, expected_row)
    close(mass, expected_mass)
    assert own.row_step(logits, TEMPERATURE, first, 7, False)[1] is None
    for x, y in zip(
        own.assignments(logits, TEMPERATURE, first, 7),
        reference.assignments(logits, TEMPERATURE, first, 7),
        strict=True,
    ):
        close(x, y)
    potentials, row = own.potentials(logits, TEMPERATURE, 2, 7)
    second = first - expected_mass.log()
    close(potentials, second)
    close(row, reference.row_step(logits, TEMPERATURE, second, 7, False)[0])


def check_clustering() -> None:
    """Loss and gradient, also over the student's own memory."""
    from franca_fast.backends.contracts import ClusteringProblem, Scores

    own, reference = backends("clustering_cross_entropy")
    student, teacher = (Scores([torch.randn(n, k) for k in (20, 33)]) for n in (6, 4))
    a, weights = -torch.rand(53), torch.rand(6)
    b, _ = backends("sinkhorn")[1].row_step(teacher, TEMPERATURE, a, 4, False)
    rows = torch.randint(4, (6, 2))
    problem = ClusteringProblem(student, teacher, a, b, 0.1, TEMPERATURE, rows, weights)
    loss, lse = own.forward(problem)
    expected_loss, expected_lse = reference.forward(problem)
    close(loss, expected_loss)
    close(lse, expected_lse)
    grad = torch.rand(2)
    expected = reference.backward(problem, grad, lse).values
    for out in (None, student.values):
        for x, y in zip(own.backward(problem, grad, lse, out=out).values, expected, strict=True):
            close(x, y)
    try:
        apart = [s.t().contiguous().t() for s in student.values]
        own.backward(problem, grad, lse, out=apart)
    except ValueError as error:
        assert "adjacent" in str(error)
    else:
        raise AssertionError("gradients were written to copies")


def streamed(n_rows: int, dtype: torch.dtype) -> Any:
    """Random streamed scores of two heads."""
    from franca_fast.backends.contracts import Scores

    features = [torch.randn(n_rows, c, dtype=dtype) for c in (24, 40)]
    prototypes = [torch.randn(k, c, dtype=dtype) / c**0.5 for k, c in ((21, 24), (66, 40))]
    return Scores(features, prototypes, [torch.rand(k) + 0.5 for k in (21, 66)])


def check_scores() -> None:
    """Scores with and without scales, in both forms in which tiles are multiplied."""
    from franca_fast import _C
    from franca_fast.backends.cuda import _streamed_scores

    assert _C.cuda.offers_warpgroups()
    own, reference = backends("prototype_scores")
    scaled = streamed(5, torch.bfloat16)
    plain = scaled._replace(scales=())
    for scores, warpgroups in ((scaled, False), (scaled, True), (plain, True)):
        _streamed_scores._WARPGROUPS = warpgroups
        for a, b in zip(own.forward(scores), reference.forward(scores), strict=True):
            close(a, b, 2e-2)


def check_weight_norm() -> None:
    """Prototypes normalised, and their gradients from both of what they are used for."""
    own, reference = backends("weight_norm_scores")
    g = torch.rand(21) + 0.5
    for v, low in ((torch.randn(21, 40)[:, :24], torch.bfloat16), (torch.randn(24, 21).t(), None)):
        low = low or v.dtype
        w, dw = own.normalized(v, g, low), torch.randn(21, 24).to(low)
        close(w, reference.normalized(v, g, low), 1e-2 if low != v.dtype else 1e-5)
        for dscales in (None, torch.randn(21)):
            results = own.gradients(dw, dscales, v, g)
            for x, y in zip(results, reference.gradients(dw, dscales, v, g), strict=True):
                close(x, y, 1e-5)
        given, x = (None if low == v.dtype else w), torch.randn(5, 24).to(low)
        grad = torch.randn(5, 21).to(low)
        for a, b in zip(
            own.backward(grad, x, v, g, given),
            reference.backward(grad, x, v, g, given),
            strict=True,
        ):
            close(a, b, 1e-5)


def check_default_dtype() -> None:
    """Results are float32 whatever type new tensors have by default."""
    from franca_fast.backends.contracts import Scores

    own, _ = backends("sinkhorn")
    logits = Scores([torch.randn(9, 40)])
    expected = own.potentials(logits, TEMPERATURE, 2, 9)
    torch.set_default_dtype(torch.float64)
    try:
        results = own.potentials(logits, TEMPERATURE, 2, 9)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, results, expected))


def check_streamed() -> None:
    """Passes, loss and gradients of scores that are never stored."""
    from franca_fast.backends import _streamed_backward as shared
    from franca_fast.backends.contracts import ClusteringProblem, Scores

    own, reference = backends("streamed_clustering")
    student, teacher = streamed(6, torch.float16), streamed(4, torch.float16)
    wide = [Scores(*([m.float() for m in part] for part in side)) for side in (student, teacher)]
    maximum, total = own.column_logsumexp(teacher, TEMPERATURE, 4)
    expected_maximum, expected_total = reference.column_logsumexp(wide[1], TEMPERATURE, 4)
    close(maximum, expected_maximum)
    close(total, expected_total, 2e-3)
    a = -(expected_maximum + expected_total.log())
    b, mass = own.row_step(teacher, TEMPERATURE, a, 4, True)
    expected_row, expected_mass = reference.row_step(wide[1], TEMPERATURE, a, 4, True)
    close(b, expected_row, 1e-3)
    close(mass, expected_mass, 1e-3)
    rows, weights = torch.randint(4, (6, 2)), torch.rand(6)
    problem = ClusteringProblem(student, teacher, a, b, 0.1, TEMPERATURE, rows, weights)
    wide_problem = problem._replace(student=wide[0], teacher=wide[1])
    loss, lse = own.forward(problem)
    expected_loss, expected_lse = reference.forward(wide_problem)
    close(loss, expected_loss, 1e-3)
    close(lse, expected_lse, 1e-3)
    grad = torch.rand(2)
    gradients = own.backward(problem, grad, lse)
    expected = reference.backward(wide_problem, grad, lse)
    own._BLOCK_COLUMNS, shared.CHUNK_ELEMENTS = 16, 1
    in_chunks = own.backward(problem, grad, lse)
    for results in (gradients, in_chunks):
        for part, expected_part in zip(results, expected, strict=True):
            for x, y in zip(part, expected_part, strict=True):
                close(x, y, 1e-2)


def check_attention() -> None:
    """Attention read from a projection's output, written into the gradient of one."""
    from franca_fast.backends.contracts import AttentionProblem

    own, reference = backends("varlen_attention")
    for dtype, dim, seqlens in (
        (torch.bfloat16, 64, [50, 50, 17, 65]),
        (torch.float16, 128, [37]),
        (torch.bfloat16, 64, [257]),
    ):
        tokens = sum(seqlens)
        exact = []
        wide = torch.randn(tokens, 3, 2, dim).to(dtype)
        grad = torch.randn(tokens, 2, dim).to(dtype)
        errors = []
        for module, kind in ((reference, torch.float64), (reference, dtype), (own, dtype)):
            qkv, gradient = wide.to(kind), torch.full(wide.shape, torch.nan, dtype=kind)
            problem = AttentionProblem(*qkv.unbind(1), seqlens, 0.125)
            out, lse = module.forward(problem)
            module.backward(problem, grad.to(kind), out, lse, gradient.unbind(1))
            results = (out.double(), lse.double(), gradient.double())
            exact = exact or list(results)
            errors.append(
                [float((a - b).norm() / b.norm()) for a, b in zip(results, exact, strict=True)]
            )
        for theirs, ours in zip(*errors[1:], strict=True):
            assert ours <= 2 * theirs + 1e-6, (ours, theirs)


def check_shared_attention() -> None:
    """A batch of which PyTorch's kernels have a part."""
    own, reference = backends("varlen_attention")
    from franca_fast.backends import _fused_attention as fused_attention
    from franca_fast.backends.contracts import AttentionProblem

    qkv = torch.randn(60, 3, 2, 64).to(torch.float16)
    grad = torch.randn(60, 2, 64).to(torch.float16)
    results = []
    everything = fused_attention.own_runs
    for module, chosen in ((reference, None), (own, lambda runs, *rest: runs[1:2])):
        fused_attention.own_runs = chosen or everything
        problem = AttentionProblem(*qkv.unbind(1), [17, 13, 13, 17], 0.125)
        out, lse = module.forward(problem)
        gradient = torch.full(qkv.shape, torch.nan, dtype=qkv.dtype)
        module.backward(problem, grad, out, lse, gradient.unbind(1))
        results.append((out, lse, gradient))
    fused_attention.own_runs = everything
    for ours, theirs in zip(results[1], results[0], strict=True):
        close(ours, theirs, 4e-3)
        assert torch.equal(ours[:17], theirs[:17]) and not torch.equal(ours, theirs)


def check_adamw() -> None:
    """An update with and without clip factors and teachers."""
    own, reference = backends("adamw_update")
    from franca_fast.backends.contracts import AdamWProblem

    sizes = (5, 0, 4096, 300)
    for with_all in (True, False):
        results = []
        for module in (own, reference):
            torch.manual_seed(1)
            p, g, m, v, t = ([torch.rand(n).mul_(0.1) for n in sizes] for _ in range(5))
            steps = [torch.tensor(float(i)) for i in range(4)]
            problem = AdamWProblem(
                *(p, g, m, v, steps),
                [x if with_all and i != 2 else None for i, x in enumerate(t)],
                *([0.01, 0.02, 0.03, 0.0], [0.4, 0.0, 0.4, 0.1], [0, 1, 1, 0]),
                torch.tensor([0.5, 1.0]) if with_all else None,
                *(0.9, 0.99, 1e-8, 0.75, torch.tensor(True)),
            )
            module.update(problem)
            results.append([*p, *m, *v, *steps, *t])
        for ours, theirs in zip(*results, strict=True):
            close(ours, theirs, 1e-6)


CHECKS = (
    check_devices,
    check_default_dtype,
    check_sinkhorn,
    check_clustering,
    check_scores,
    check_weight_norm,
    check_streamed,
    check_attention,
    check_shared_attention,
    check_adamw,
)


def main() -> None:
    """Runs all checks; an exception is a failure."""
    install(Path(sys.argv[1]).resolve())
    for check in CHECKS:
        torch.manual_seed(0)
        check()
        print(f"{check.__name__}: passed")


if __name__ == "__main__":
    main()
