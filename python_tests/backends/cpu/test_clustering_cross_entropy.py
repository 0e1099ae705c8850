"""The compiled clustering cross-entropy, with every instruction set that this machine runs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from franca_fast.backends.contracts import ClusteringProblem, Scores
from franca_fast.backends.cpu import clustering_cross_entropy as compiled
from franca_fast.backends.torch import clustering_cross_entropy as reference
from franca_fast.backends.torch.sinkhorn import row_step
from franca_fast.errors import InputError
from python_tests.backends.cpu.helpers import (
    DTYPES,
    assert_as_exact,
    misaligned,
    poisoned_memory,
    threads,
)

SHAPES = [
    (1, 1, 1, [1, 2]),
    (5, 3, 2, [33, 700]),
    (40, 12, 2, [513, 16, 1024]),
    (21, 21, 1, [600]),
    (6, 4, 5, [64]),
]


pytestmark = pytest.mark.usefixtures("isa")


@dataclass
class Case:
    """A problem, and the gradient of its result."""

    problem: ClusteringProblem
    grad_loss: Tensor

    def changed(self, **changes) -> Case:
        """With other values, among them lists of scores."""
        grad_loss = changes.pop("grad_loss", self.grad_loss)
        for side in {"student", "teacher"} & set(changes):
            changes[side] = Scores(changes[side])
        return Case(self.problem._replace(**changes), grad_loss)

    def double(self) -> Case:
        given = self.problem
        return self.changed(
            student=[s.double() for s in given.student.values],
            teacher=[z.double() for z in given.teacher.values],
            prototype_potentials=given.prototype_potentials.double(),
            row_potentials=given.row_potentials.double(),
            weights=given.weights.double(),
            grad_loss=self.grad_loss.double(),
        )

    def run(self, module, **options):
        loss, lse = module.forward(self.problem)
        gradient = module.backward(self.problem, self.grad_loss, lse, **options).values
        return {"loss": loss, "lse": lse, **{f"grad{i}": g for i, g in enumerate(gradient)}}


def make_problem(m, n, p, columns, dtype=torch.float32, teacher_dtype=None, scale=1.0) -> Case:
    student = [(torch.randn(m, k) * scale).clamp(-1e4, 1e4).to(dtype) for k in columns]
    teacher = [
        (torch.randn(n, k) * scale).clamp(-1e4, 1e4).to(teacher_dtype or dtype) for k in columns
    ]
    a = torch.randn(sum(columns))
    b, _ = row_step(Scores([z.double() for z in teacher]), 0.05, a.double(), n, False)
    rows, weights = torch.randint(0, n, (m, p)), torch.rand(m) + 0.1
    problem = ClusteringProblem(
        Scores(student), Scores(teacher), a, b.float(), 0.1, 0.05, rows, weights
    )
    return Case(problem, torch.rand(len(columns)) + 0.5)


def run_all(problem):
    """Ours, torch's in the same precision, and the exact results."""
    return problem.run(compiled), problem.run(reference), problem.double().run(reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "p", "columns"), SHAPES)
def test_is_as_exact_as_torch(m, n, p, columns, dtype):
    problems = [make_problem(m, n, p, columns, dtype) for _ in range(5)]
    results = [run_all(problem) for problem in problems]
    assert_as_exact(results)
    for name, values in results[0][0].items():
        assert values.dtype == (dtype if name.startswith("grad") else torch.float32)


@pytest.mark.parametrize("teacher_dtype", DTYPES)
def test_dtypes_may_differ(teacher_dtype):
    problem = make_problem(8, 4, 2, [600], torch.float32, teacher_dtype)
    exact = problem.double().run(reference)
    for name, values in problem.run(compiled).items():
        torch.testing.assert_close(values.double(), exact[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_large_logits(scale):
    results = [run_all(make_problem(10, 6, 2, [600, 40], scale=scale)) for _ in range(5)]
    assert all(values.isfinite().all() for ours, _, _ in results for values in ours.values())
    assert_as_exact(results)


def test_rows_that_share_their_targets():
    problem = make_problem(50, 5, 2, [520])
    problem = problem.changed(teacher_rows=torch.tensor([[0, 3], [1, 4]]).repeat(25, 1))
    exact = problem.double().run(reference)
    for name, values in problem.run(compiled).items():
        torch.testing.assert_close(values.double(), exact[name], rtol=1e-5, atol=1e-5)


def test_padding_of_the_teacher_gives_no_target():
    problem = make_problem(3, 4, 2, [40])
    problem.problem.row_potentials[:, 3] = float("-inf")
    problem = problem.changed(teacher_rows=torch.tensor([[0, 3], [3, 3], [1, 2]]))
    exact = problem.double().run(reference)
    for name, values in problem.run(compiled).items():
        torch.testing.assert_close(values.double(), exact[name], rtol=1e-5, atol=1e-5)


def test_no_student_rows():
    results = make_problem(0, 3, 2, [5, 600]).run(compiled)
    assert torch.equal(results["loss"], torch.zeros(2))
    assert results["grad1"].shape == (0, 600)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_does_not_matter(dtype):
    problem = make_problem(20, 9, 2, [37, 513], dtype)
    expected = problem.run(compiled)
    given = problem.problem
    laid_out = problem.changed(
        student=[misaligned(s) for s in given.student.values],
        teacher=[z.t().contiguous().t() for z in given.teacher.values],
        weights=given.weights.repeat(2, 1).t()[:, 0],
    )
    got = laid_out.run(compiled)
    assert all(torch.equal(values, got[name]) for name, values in expected.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_may_take_the_place_of_the_logits(dtype):
    problem = make_problem(20, 9, 2, [37, 513], dtype)
    expected = problem.run(compiled)
    student = problem.problem.student.values
    got = problem.run(compiled, out=student)
    assert got["grad0"].data_ptr() == student[0].data_ptr()
    assert all(torch.equal(values, got[name]) for name, values in expected.items())


def test_results_have_the_same_bits_for_any_number_of_threads():
    problem = make_problem(80, 20, 2, [3000, 257])
    results = []
    for count in (1, 1, 2, 3, 5):
        with threads(count):
            results.append(problem.run(compiled))
    for other in results[1:]:
        assert all(torch.equal(values, other[name]) for name, values in results[0].items())


def test_what_memory_held_before_does_not_matter():
    problem = make_problem(30, 7, 2, [300, 1, 513])
    expected = problem.run(compiled)
    with poisoned_memory():
        poisoned = problem.run(compiled)
    assert all(torch.equal(values, poisoned[name]) for name, values in expected.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": [torch.zeros(4, 40), torch.zeros(4, 7)]}, "prototype_potentials: .*accepted"),
        ({"teacher": [torch.zeros(4, 39), torch.zeros(4, 9)]}, "student has 40 prototypes"),
        (
            {"teacher": [torch.zeros(4, 48)], "row_potentials": torch.zeros(1, 4)},
            "student has 2 heads",
        ),
        ({"teacher_rows": torch.full((3, 2), 4)}, "teacher_rows holds 4"),
        ({"teacher_rows": torch.full((3, 2), -1)}, "teacher_rows holds -1"),
        ({"teacher_rows": torch.zeros(3)}, r"teacher_rows: .*accepted.*\[3, 1\]"),
        ({"teacher_rows": torch.zeros(3, 2)}, "teacher_rows: .*accepted: torch.int64"),
        ({"weights": torch.ones(4)}, "weights: .*accepted"),
        ({"row_potentials": torch.zeros(2, 3)}, "row_potentials: .*accepted"),
        ({"student_temperature": 0.0}, "student_temperature is 0"),
        ({"teacher_temperature": -0.1}, "teacher_temperature is -0.1"),
        ({"grad_loss": torch.ones(3)}, "grad_loss: .*accepted"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    problem = make_problem(3, 4, 2, [40, 8])
    with pytest.raises(ValueError, match=message):
        problem.changed(**changes).run(compiled)


@pytest.mark.parametrize("out", [[torch.empty(3, 40)], [torch.empty(40, 3).t(), torch.empty(3, 8)]])
def test_wrong_place_for_gradients_is_named(out):
    problem = make_problem(3, 4, 2, [40, 8])
    with pytest.raises(InputError, match=r"out: .*; accepted: "):
        problem.run(compiled, out=out)
