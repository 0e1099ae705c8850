"""Every backend of the device under test, in low precision and at sizes that reach its limits.

What python_tests/ops checks of every backend is not repeated here. On a GPU the sizes are those of
the paper and beyond 2^31 elements; elsewhere they only prove the tests.
"""

from __future__ import annotations

import os

import pytest
import torch

import franca_fast as ff
from python_tests.helpers import DEVICE, backends_of

TEMPERATURE = 0.06
STUDENT_TEMPERATURE = 0.1
LARGE = DEVICE.type == "cuda" and os.environ.get("FRANCA_FAST_TEST_SIZES") != "small"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows, rows that count, columns of the heads.
SHAPES = [(7, 5, (5, 37, 2060)), (131, 130, (40, 8200, 130))]
if LARGE:
    SHAPES += [(64, 64, (8192, 16384)), (300, 300, (65536, 131072, 9))]
FACTORS = [(1, 8, (3,)), (70, 72, (130, 2060))]
if LARGE:
    FACTORS += [(300, 256, (8192, 66))]
# More than 2^31 elements, so that an index of 32 bits is not enough.
OVERFLOW = (16500, 131080) if LARGE else (165, 131)


def cases(operator, dtypes=DTYPES):
    """Each backend with each dtype that it runs; the reference rounds low precision more often."""
    return [
        pytest.param(backend, dtype, id=f"{backend}-{str(dtype).removeprefix('torch.')}")
        for dtype in dtypes
        for backend in backends_of(operator, dtype)
        if backend != "torch" or dtype == torch.float32
    ]


def random_logits(n_rows, widths, dtype):
    return [torch.randn(n_rows, k).mul_(0.3).to(dtype) for k in widths]


def assert_near(values, expected, tolerance):
    """Distance to the reference, relative to its size; infinities where they are expected."""
    for value, exact in zip(values, expected, strict=True):
        finite = torch.isfinite(exact)
        assert torch.equal(torch.isfinite(value), finite)
        difference = (value.double() - exact.double())[finite]
        assert difference.norm() <= tolerance * exact.double()[finite].norm().clamp_min(1e-30)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("backend", "dtype"), cases("sinkhorn"))
def test_potentials(backend, dtype, shape):
    n_rows, n_valid, widths = shape
    z = random_logits(n_rows, widths, dtype)
    with ff.use_backend("torch"):
        wide = [x.double() for x in z]
        expected = ff.ops.sinkhorn_potentials(wide, TEMPERATURE, n_valid=n_valid)
    with ff.use_backend(backend):
        first, second = (
            ff.ops.sinkhorn_potentials(z, TEMPERATURE, n_valid=n_valid) for _ in range(2)
        )
    assert_near(first.prototype + first.row, expected.prototype + expected.row, 2e-5)
    assert all(map(torch.equal, first.prototype + first.row, second.prototype + second.row))


@pytest.mark.parametrize(("backend", "dtype"), cases("sinkhorn"))
def test_assignments(backend, dtype):
    z = random_logits(9, (5, 2060), dtype)
    with ff.use_backend("torch"):
        expected = ff.ops.sinkhorn_knopp([x.double() for x in z], TEMPERATURE, n_valid=7)
    with ff.use_backend(backend):
        assert_near(ff.ops.sinkhorn_knopp(z, TEMPERATURE, n_valid=7), expected, 2e-5)


def loss_and_gradients(student, teacher, rows):
    leaves = [s.detach().requires_grad_() for s in student]
    targets = ff.ops.sinkhorn_targets(teacher, TEMPERATURE)
    loss = ff.ops.clustering_cross_entropy(
        leaves, targets, teacher_rows=rows, student_temperature=STUDENT_TEMPERATURE
    )
    return [loss.detach()], torch.autograd.grad(loss.sum(), leaves)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("backend", "dtype"), cases("clustering_cross_entropy"))
def test_loss_and_gradient(backend, dtype, shape):
    n_rows, _, widths = shape
    teacher, student = (random_logits(n, widths, dtype) for n in (n_rows, n_rows + 3))
    rows = torch.randint(n_rows, (n_rows + 3, 2))
    with ff.use_backend("torch"):
        wide = [[x.double() for x in side] for side in (student, teacher)]
        loss, gradients = loss_and_gradients(*wide, rows)
    with ff.use_backend(backend):
        own_loss, own_gradients = loss_and_gradients(student, teacher, rows)
    assert_near(own_loss, loss, 2e-5)
    assert_near(own_gradients, gradients, max(1e-4, torch.finfo(dtype).eps))


@pytest.mark.parametrize("shape", FACTORS)
@pytest.mark.parametrize(("backend", "dtype"), cases("prototype_scores"))
def test_scores(backend, dtype, shape):
    x, v, scales = factors(*shape, dtype)
    with ff.use_backend(backend):
        scores = ff.ops.prototype_scores(x, v, scales=scales)
    triples = zip(x, v, scales, strict=True)
    expected = [(a.double() @ b.double().t()) * c.double() for a, b, c in triples]
    assert_near(scores, expected, max(1e-6, torch.finfo(dtype).eps))


def factors(n_rows, depth, widths, dtype):
    x = tuple(torch.randn(n_rows, depth).to(dtype) for _ in widths)
    v = tuple((torch.randn(k, depth) / depth**0.5).to(dtype) for k in widths)
    return x, v, tuple(torch.rand(k) for k in widths)


def weight_norm_results(x, v, g, grad):
    leaves = [m.detach().requires_grad_() for m in (x, v, g)]
    scores = ff.ops.weight_norm_scores(*leaves)
    return [scores.detach(), *torch.autograd.grad(scores, leaves, grad)]


@pytest.mark.parametrize("shape", FACTORS)
@pytest.mark.parametrize(("backend", "dtype"), cases("weight_norm_scores"))
def test_weight_norm_scores(backend, dtype, shape):
    n_rows, depth, widths = shape
    x, v, g = torch.randn(n_rows, depth), torch.randn(widths[-1], depth), torch.rand(widths[-1])
    x, grad = x.to(dtype), torch.randn(n_rows, widths[-1]).to(dtype)
    with ff.use_backend("torch"):
        expected = weight_norm_results(*(m.double() for m in (x, v, g, grad)))
    with ff.use_backend(backend):
        results = weight_norm_results(x, v, g, grad)
    assert_near(results, expected, max(1e-6, 2 * torch.finfo(dtype).eps))


def streamed_results(student, teacher):
    """Potentials and loss, and the gradients of all factors of the student."""
    leaves = [[m.detach().requires_grad_() for m in part] for part in student]
    targets = ff.ops.sinkhorn_targets(ff.ops.Scores(*teacher), TEMPERATURE)
    loss = ff.ops.clustering_cross_entropy(
        ff.ops.Scores(*leaves), targets, student_temperature=STUDENT_TEMPERATURE
    )
    gradients = torch.autograd.grad(loss.sum(), [m for part in leaves for m in part])
    return [*targets.potentials.prototype, loss.detach()], gradients


@pytest.mark.parametrize("shape", FACTORS)
@pytest.mark.parametrize(("backend", "dtype"), cases("streamed_clustering"))
def test_streamed_loss(backend, dtype, shape):
    sides = [factors(*shape, dtype) for _ in range(2)]
    with ff.use_backend("torch"):
        wide = [[tuple(m.double() for m in part) for part in side] for side in sides]
        results, gradients = streamed_results(*wide)
    with ff.use_backend(backend):
        own_results, own_gradients = streamed_results(*sides)
    assert_near(own_results, results, 1e-4)
    assert_near(own_gradients, gradients, max(1e-4, 4 * torch.finfo(dtype).eps))


@pytest.mark.parametrize(("backend", "dtype"), cases("sinkhorn", [torch.bfloat16]))
def test_rows_beyond_two_to_the_thirty_one_elements(backend, dtype):
    n_rows, n_columns = OVERFLOW
    z = torch.zeros(n_rows, n_columns, dtype=dtype)
    z[-3:] = torch.randn(3, n_columns).to(dtype)
    center = torch.randn(n_columns)
    with ff.use_backend(backend):
        last = ff.ops.centered_targets(z, TEMPERATURE, [center]).potentials.row[0][-3:]
        alone = ff.ops.centered_targets(z[-3:], TEMPERATURE, [center]).potentials.row[0]
    assert_near([last], [alone], 1e-6)


@pytest.mark.parametrize(("backend", "dtype"), cases("clustering_cross_entropy", [torch.bfloat16]))
def test_loss_beyond_two_to_the_thirty_one_elements(backend, dtype):
    n_rows, n_columns = OVERFLOW
    s = torch.zeros(n_rows, n_columns, dtype=dtype)
    s[-3:] = torch.randn(3, n_columns).to(dtype)
    rows, weights = torch.arange(n_rows).unsqueeze(1), torch.zeros(n_rows)
    weights[-3:] = 1
    results = []
    with ff.use_backend(backend):
        for part in (slice(None), slice(n_rows - 3, None)):
            student, teacher = s[part].clone().requires_grad_(), s[part]
            targets = ff.ops.centered_targets(teacher, TEMPERATURE, [torch.zeros(n_columns)])
            own_rows = rows[part] - rows[part][0]
            loss = ff.ops.clustering_cross_entropy(
                student,
                targets,
                teacher_rows=own_rows,
                weights=weights[part],
                student_temperature=STUDENT_TEMPERATURE,
            )
            results.append((loss.detach(), torch.autograd.grad(loss.sum(), student)[0][-3:]))
    assert_near(results[0], results[1], 1e-3)


@pytest.mark.parametrize("n_rows", [64, 100])
@pytest.mark.parametrize(("backend", "dtype"), cases("sinkhorn", [torch.bfloat16]))
def test_a_captured_graph_gives_what_a_call_gives(backend, dtype, n_rows):
    """A GPU replays a graph, others call again: with new inputs in the same memory."""
    z = random_logits(n_rows, (2048, 300), dtype)

    def call():
        targets = ff.ops.sinkhorn_targets(z, TEMPERATURE)
        loss = ff.ops.clustering_cross_entropy(z, targets, student_temperature=STUDENT_TEMPERATURE)
        return [*targets.potentials.prototype, *targets.potentials.row, loss]

    with ff.use_backend(backend):
        results, again = captured(call)
        for x in z:
            x.copy_(torch.randn_like(x) * 0.3)
        again()
        assert all(map(torch.equal, results, call()))


def captured(call):
    """Results of a call, and what repeats it into the same memory."""
    results = call()
    if DEVICE.type != "cuda":

        def again():
            for old, new in zip(results, call(), strict=True):
                old.copy_(new)

        return results, again
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return results, graph.replay
