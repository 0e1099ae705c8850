"""The Triton kernels in Triton's interpreter on the CPU; run by test_triton.py.

What python_tests/ops checks of every backend is not repeated here: these are the tile boundaries,
the two-stage reductions, the memory that kernels find, and the streamed operators.
"""

from __future__ import annotations

import math

import pytest
import torch

import franca_fast as ff
from franca_fast.backends import _streamed_backward, choose
from franca_fast.backends.contracts import ClusteringProblem, Scores
from franca_fast.backends.torch import clustering_cross_entropy as reference_loss
from franca_fast.backends.torch import sinkhorn as reference
from franca_fast.backends.triton import (
    clustering_cross_entropy,
    sinkhorn,
    streamed_clustering,
    swiglu,
)

EPS = torch.finfo(torch.float32).eps
TEACHER, STUDENT = 0.05, 0.1  # temperatures


def double(scores):
    return Scores(*([x.double() for x in part] for part in scores))


def close(ours, expected, factor=1.0):
    """Within a few float32 roundings of the largest element."""
    for a, b in zip(ours, expected, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(
            a.double(),
            b,
            rtol=factor * 32 * EPS,
            atol=factor * 32 * EPS * (1 + float(b.abs().max())),
        )


def passes(module, scores, a, n_valid):
    """All results of the Sinkhorn half-steps of one backend, as a list of tensors."""
    column = module.column_logsumexp(scores, TEACHER, n_valid)
    return [*column, *module.row_step(scores, TEACHER, a, n_valid, True)]


def potential(z):
    """The prototype potentials after the first column pass, float64."""
    maximum, total = reference.column_logsumexp(z, TEACHER, z.n_rows)
    return -(maximum + total.log())


# Stored logits


@pytest.mark.parametrize(
    ("n_rows", "columns", "programs"),
    [
        (130, (5, 30), 2048),  # splits of the rows
        (3, (4500, 7, 2100), 2048),  # several units in a head
        (3, (4500, 7, 2100), 1),  # several blocks in a unit
        (2, (64,), 2048),  # one head
    ],
)
def test_sinkhorn_equals_float64_across_tiles(n_rows, columns, programs, monkeypatch):
    monkeypatch.setattr(sinkhorn, "_PROGRAMS", programs)
    z = Scores([torch.randn(n_rows, k) for k in columns])
    a = potential(double(z))
    ours = passes(sinkhorn, z, a.float(), n_rows)
    close(ours, passes(reference, double(z), a, n_rows))


@pytest.mark.parametrize(
    ("n_rows", "n_valid", "columns"),
    [
        (3, 2, (4500, 7)),  # several units in a head, several rows in a tile
        (64, 64, (200, 5)),  # several tiles in a unit
        (70, 68, (30, 5)),  # more rows than a tile holds, splits of the rows
        (4, 0, (9,)),
    ],
)
def test_potentials_equal_float64_across_tiles(n_rows, n_valid, columns):
    z = Scores([torch.randn(n_rows, k) for k in columns])
    for n_iterations in (1, 3):
        potentials, row = sinkhorn.potentials(z, TEACHER, n_iterations, n_valid)
        a = torch.zeros(sum(columns), dtype=torch.float64)
        if n_valid:
            maximum, total = reference.column_logsumexp(double(z), TEACHER, n_valid)
            a = -(maximum + total.log())
            for _ in range(n_iterations - 1):
                _, mass = reference.row_step(double(z), TEACHER, a, n_valid, True)
                a -= mass.log()
        b, _ = reference.row_step(double(z), TEACHER, a, n_valid, False)
        assert (row[:, n_valid:] == -math.inf).all()
        close([potentials], [a], factor=2)
        if n_valid:
            close([row[:, :n_valid]], [b[:, :n_valid]], factor=2)


@pytest.mark.parametrize("unknown", [-1, 3])
def test_teacher_rows_that_do_not_exist_are_not_read_and_give_nan(unknown):
    problem = loss_problem(columns=(40, 6))
    problem.teacher_rows[1, 2] = unknown
    loss, lse = clustering_cross_entropy.forward(problem)
    gradients = clustering_cross_entropy.backward(problem, torch.ones(2), lse)
    assert loss.isnan().all()
    for gradient in gradients.values:
        assert gradient[1].isnan().all() and gradient[[0, 2, 3, 4]].isfinite().all()


def test_assignments_equal_float64_across_tiles():
    z = Scores([torch.randn(6, k) for k in (2100, 3)])
    a = potential(double(z))
    ours = sinkhorn.assignments(z, TEACHER, a.float(), 5)
    close(ours, reference.assignments(double(z), TEACHER, a, 5))


@pytest.mark.parametrize(
    "view",
    [
        lambda z: z[:, 3:],  # rows that begin anywhere
        lambda z: z[::2],
        lambda z: z.t().contiguous().t(),  # strided columns
        lambda z: z[:1].expand(4, -1),  # rows of stride 0
    ],
)
def test_any_strides(view):
    z = Scores([view(torch.randn(4, k)) for k in (9, 33)])
    a = torch.randn(sum(z.columns))
    ours = passes(sinkhorn, z, a, z.n_rows)
    expected = passes(sinkhorn, Scores([x.clone() for x in z.values]), a, z.n_rows)
    assert all(torch.equal(x, y) for x, y in zip(ours, expected, strict=True))


def test_huge_logits_keep_the_mass_in_bounds():
    z = Scores([torch.randn(9, 40).clamp(-1, 1) * 1e4])
    a = potential(double(z)).float()
    _, mass = sinkhorn.row_step(z, TEACHER, a, 9, True)
    assert mass.isfinite().all()
    torch.testing.assert_close(mass.sum(), torch.tensor(9.0), rtol=1e-5, atol=0)


def problem_of(student, teacher, exact_teacher, n_targets):
    """A problem with potentials of a teacher whose scores are known in float64."""
    a = potential(exact_teacher)
    b, _ = reference.row_step(exact_teacher, TEACHER, a, teacher.n_rows, False)
    rows = torch.randint(teacher.n_rows, (student.n_rows, n_targets))
    weights = torch.rand(student.n_rows)
    return ClusteringProblem(
        student, teacher, a.float(), b.float(), STUDENT, TEACHER, rows, weights
    )


def exact_problem(problem, student, teacher):
    """The same in float64, on other scores."""
    return problem._replace(
        student=student,
        teacher=teacher,
        prototype_potentials=problem.prototype_potentials.double(),
        row_potentials=problem.row_potentials.double(),
        weights=problem.weights.double(),
    )


def loss_problem(n_student=5, n_teacher=3, n_targets=3, columns=(2100, 6)):
    teacher, student = (
        Scores([torch.randn(n, k) for k in columns]) for n in (n_teacher, n_student)
    )
    return problem_of(student, teacher, double(teacher), n_targets)


@pytest.mark.parametrize("programs", [2048, 1])
def test_loss_equals_float64_across_tiles(programs, monkeypatch):
    monkeypatch.setattr(clustering_cross_entropy, "_PROGRAMS", programs)
    problem = loss_problem()
    exact = exact_problem(problem, double(problem.student), double(problem.teacher))
    close(clustering_cross_entropy.forward(problem), reference_loss.forward(exact))


def test_loss_gradient_equals_float64_across_tiles():
    problem, grad = loss_problem(), torch.randn(2)
    exact = exact_problem(problem, double(problem.student), double(problem.teacher))
    lse = torch.stack([torch.logsumexp(s / STUDENT, dim=1) for s in exact.student.values])
    ours = clustering_cross_entropy.backward(problem, grad, lse.float())
    close(ours.values, reference_loss.backward(exact, grad.double(), lse).values)


# Streamed scores

COLUMNS = (2, 7, 200, 130)
DEPTHS = (40, 8, 70, 16)


def streamed(n_rows, dtype=torch.float32):
    """Features, prototypes and scales whose scores have about unit variance."""
    features = [torch.randn(n_rows, c).to(dtype) for c in DEPTHS]
    prototypes = [torch.randn(k, c).to(dtype) for k, c in zip(COLUMNS, DEPTHS, strict=True)]
    scales = [torch.rand(k) / c**0.5 for k, c in zip(COLUMNS, DEPTHS, strict=True)]
    return Scores(features, prototypes, scales)


def exact_scores(scores):
    heads = zip(*double(scores), strict=True)
    return Scores([(x @ v.t()) * scale for x, v, scale in heads])


@pytest.mark.parametrize(
    ("n_rows", "n_valid", "dtype"),
    [
        (1, 1, torch.float32),
        (70, 68, torch.float32),
        (70, 68, torch.bfloat16),
        (2, 2, torch.float16),
        (150, 150, torch.bfloat16),  # splits of the rows
    ],
)
def test_streamed_sinkhorn_equals_float64(n_rows, n_valid, dtype):
    scores = streamed(n_rows, dtype)
    z = exact_scores(scores)
    a = potential(z)
    ours = passes(streamed_clustering, scores, a.float(), n_valid)
    expected = passes(reference, z, a, n_valid)
    assert torch.equal(ours[2] == -math.inf, expected[2] == -math.inf)
    ours[2], expected[2] = ours[2][:, :n_valid], expected[2][:, :n_valid]
    close(ours, expected)


def test_streamed_padding_rows_may_hold_nan():
    scores = streamed(6)
    padded = [torch.cat([x, torch.full((2, x.shape[1]), math.nan)]) for x in scores.values]
    a = potential(exact_scores(scores)).float()
    plain = passes(streamed_clustering, scores, a, 6)
    ours = passes(streamed_clustering, scores._replace(values=padded), a, 6)
    ours[2] = ours[2][:, :6]
    assert all(torch.equal(x, y) for x, y in zip(ours, plain, strict=True))


@pytest.mark.parametrize(("n_rows", "n_valid"), [(0, 0), (3, 0)])
def test_streamed_sinkhorn_without_rows(n_rows, n_valid):
    maximum, total, row, mass = passes(
        streamed_clustering, streamed(n_rows), torch.zeros(sum(COLUMNS)), n_valid
    )
    assert (maximum == -math.inf).all() and (row == -math.inf).all()
    assert not total.any() and not mass.any()


def streamed_problem(n_student, n_teacher, n_targets, dtype=torch.float32):
    student, teacher = streamed(n_student, dtype), streamed(n_teacher, dtype)
    return problem_of(student, teacher, exact_scores(teacher), n_targets)


def streamed_results(problem, grad):
    """Loss, log-sum-exp and all gradients, as a list of tensors."""
    loss, lse = streamed_clustering.forward(problem)
    gradients = streamed_clustering.backward(problem, grad, lse)
    return [loss, lse, *(g for part in gradients for g in part)]


def stored_results(problem, grad, leaves, student):
    """The same by the reference on stored scores, and by autograd from those to their leaves."""
    stored = problem._replace(student=Scores([s.detach() for s in student]))
    loss, lse = reference_loss.forward(stored)
    torch.autograd.backward(student, reference_loss.backward(stored, grad, lse).values)
    return [loss, lse, *(x.grad for part in leaves for x in part)]


def exact_results(problem, grad):
    """The same in float64, from the definition of the scores."""
    leaves = [[x.double().requires_grad_() for x in part] for part in problem.student]
    exact = exact_problem(problem, Scores([]), exact_scores(problem.teacher))
    return stored_results(exact, grad.double(), leaves, exact_scores(Scores(*leaves)).values)


@pytest.mark.parametrize("shape", [(9, 4, 2), (1, 1, 1), (70, 3, 1)])
def test_streamed_loss_equals_float64(shape):
    problem, grad = streamed_problem(*shape), torch.randn(len(COLUMNS))
    close(streamed_results(problem, grad), exact_results(problem, grad), factor=4)


def test_streamed_teacher_rows_that_do_not_exist_are_not_read_and_give_nan():
    problem = streamed_problem(5, 3, 2)
    problem.teacher_rows[1, 1] = 3
    results = streamed_results(problem, torch.ones(len(COLUMNS)))
    assert results[0].isnan().all()
    for dx in results[2 : 2 + len(COLUMNS)]:
        assert dx[1].isnan().all() and dx[[0, 2, 3, 4]].isfinite().all()


def test_streamed_gradient_in_chunks_equals_float64(monkeypatch):
    monkeypatch.setattr(_streamed_backward, "CHUNK_ELEMENTS", 1)  # one block of columns each
    problem, grad = streamed_problem(5, 3, 2), torch.randn(len(COLUMNS))
    close(streamed_results(problem, grad), exact_results(problem, grad), factor=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_streamed_low_precision_error_is_at_most_twice_that_of_torch(dtype):
    problem, grad = streamed_problem(70, 3, 2, dtype), torch.ones(len(COLUMNS))
    expected = exact_results(problem, grad)
    leaves = [[x.clone().requires_grad_() for x in part] for part in problem.student]
    sides = [
        Scores([(x @ v.t()) * scale.to(dtype) for x, v, scale in zip(*side, strict=True)])
        for side in (leaves, problem.teacher)
    ]
    theirs = stored_results(problem._replace(teacher=sides[1]), grad, leaves, sides[0].values)
    for ours, low, exact in zip(streamed_results(problem, grad), theirs, expected, strict=True):
        error = (ours.double() - exact).abs().max()
        allowed = 2 * (low.double() - exact).abs().max()
        assert error <= allowed + 32 * EPS * exact.abs().max()


def test_streamed_loss_equals_stored():
    problem, grad = streamed_problem(6, 4, 2), torch.randn(len(COLUMNS))
    s, z = (
        Scores([x.float() for x in exact_scores(side).values])
        for side in (problem.student, problem.teacher)
    )
    loss, lse = clustering_cross_entropy.forward(problem._replace(student=s, teacher=z))
    ours = streamed_results(problem, grad)
    torch.testing.assert_close(ours[0], loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], lse, rtol=1e-6, atol=1e-5)


def test_streamed_loss_without_student_rows():
    problem = streamed_problem(1, 2, 1)
    empty = problem._replace(
        student=problem.student._replace(values=[x[:0] for x in problem.student.values]),
        teacher_rows=torch.empty(0, 1, dtype=torch.int64),
        weights=torch.empty(0),
    )
    results = streamed_results(empty, torch.ones(len(COLUMNS)))
    assert not any(result.any() for result in results)


# Memory and repeatability


def everything():
    """Results of every operator on the same inputs, at sizes with a second stage."""
    torch.manual_seed(1)
    z = Scores([torch.randn(67, k) for k in (5, 30)])
    results = passes(sinkhorn, z, torch.randn(35), 66)
    few = Scores([x[:3] for x in z.values])
    results += sinkhorn.assignments(few, TEACHER, torch.randn(35), 2)
    problem = loss_problem(columns=(1100, 6))
    loss, lse = clustering_cross_entropy.forward(problem)
    results += [loss, lse]
    results += clustering_cross_entropy.backward(problem, torch.ones(2), lse).values
    results += passes(streamed_clustering, streamed(70), torch.randn(sum(COLUMNS)), 69)
    h, grad = torch.randn(3, 2100), torch.randn(3, 1050)
    results += [swiglu.forward(h), swiglu.backward(grad, h)]
    for dtype in (torch.float32, torch.bfloat16):
        results += streamed_results(streamed_problem(5, 3, 2, dtype), torch.ones(len(COLUMNS)))
    return results


@pytest.fixture
def _poisoned_memory():
    """New memory holds NaN instead of what was there before."""
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory, as a side effect
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def first_results():
    return everything()


def test_nothing_is_read_before_it_is_written(first_results, _poisoned_memory):
    for ours, first in zip(everything(), first_results, strict=True):
        assert torch.equal(ours, first)


def test_same_bits_on_repeated_calls(first_results):
    for ours, first in zip(everything(), first_results, strict=True):
        assert torch.equal(ours, first)


# Selection


def test_the_interpreter_runs_only_where_it_is_asked_for():
    tensor = torch.zeros(1, 1)
    assert "triton" not in choose("sinkhorn", tensor).__name__
    with ff.use_backend("triton"):
        assert choose("sinkhorn", tensor) is sinkhorn
