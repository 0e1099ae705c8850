"""The clustering loss against golden values, float64 and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import (
    DEVICE,
    backends_of,
    cross_entropy_float64,
    heads,
    sinkhorn_float64,
)

COLUMNS = (1, 7, 64, 1031)


@pytest.fixture(params=backends_of("clustering_cross_entropy"))
def backend(request):
    with ff.use_backend(request.param):
        yield request.param


def problem(n_student=10, n_teacher=6, n_targets=2, dtype=torch.float32):
    teacher = [torch.randn(n_teacher, k, dtype=dtype) for k in COLUMNS]
    student = [torch.randn(n_student, k, dtype=dtype, requires_grad=True) for k in COLUMNS]
    rows = torch.randint(n_teacher, (n_student, n_targets))
    weights = torch.rand(n_student, dtype=torch.promote_types(dtype, torch.float32))
    return student, teacher, rows, weights


def known_targets(assignments):
    """Targets that are these assignments."""
    zeros = ff.ops.SinkhornPotentials(
        tuple(torch.zeros(q.shape[1]) for q in assignments),
        tuple(torch.zeros(q.shape[0]) for q in assignments),
    )
    return ff.ops.ClusteringTargets(ff.ops.Scores([q.log() for q in assignments]), zeros, 1.0)


def golden_loss(golden, student_name, rows, weights):
    targets = known_targets(heads(golden, "sinkhorn.assignments"))
    student = [s.clone().requires_grad_() for s in heads(golden, student_name)]
    loss = ff.ops.clustering_cross_entropy(
        student, targets, teacher_rows=rows, weights=weights
    ).sum()
    loss.backward()
    return loss.detach(), [s.grad for s in student]


def test_global_crops_equal_golden(golden, backend):
    loss, gradients = golden_loss(golden, "loss.student_global", None, None)
    torch.testing.assert_close(loss, golden["loss.dino_global"], rtol=1e-5, atol=0)
    for ours, theirs in zip(gradients, heads(golden, "loss.grad_global"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_local_crops_equal_golden(golden, backend):
    images = torch.arange(4)
    rows = torch.stack([images, images + 4], dim=1).repeat(3, 1)
    loss, gradients = golden_loss(golden, "loss.student_local", rows, torch.full((12,), 0.25))
    torch.testing.assert_close(loss, golden["loss.dino_local"], rtol=1e-5, atol=0)
    for ours, theirs in zip(gradients, heads(golden, "loss.grad_local"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(10, 6, 2), (1, 1, 1), (33, 2, 3), (0, 4, 1)])
def test_equals_float64(backend, shape):
    student, teacher, rows, weights = problem(*shape)
    loss = ff.ops.clustering_cross_entropy(
        student, ff.ops.sinkhorn_targets(teacher, 0.05), teacher_rows=rows, weights=weights
    )
    loss.sum().backward()
    for i, (s, z) in enumerate(zip(student, teacher, strict=True)):
        reference = s.detach().double().requires_grad_()
        expected = cross_entropy_float64(reference, sinkhorn_float64(z, 0.05), rows, weights, 0.1)
        expected.backward()
        # The loss is a difference of terms as large as P * |s / t|, rounded in float32.
        terms = float((weights * s.detach().abs().amax(dim=1)).sum()) * rows.shape[1] / 0.1
        bound = 2 * torch.finfo(torch.float32).eps * terms
        torch.testing.assert_close(loss[i].double(), expected.detach(), rtol=5e-6, atol=bound)
        torch.testing.assert_close(s.grad.double(), reference.grad, rtol=1e-4, atol=2e-5)


def test_gradcheck_in_float64():
    student, teacher, rows, weights = problem(4, 3, 2, torch.float64)
    student, teacher = student[:3], teacher[:3]
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)

    def loss(*logits):
        return ff.ops.clustering_cross_entropy(logits, targets, teacher_rows=rows, weights=weights)

    assert torch.autograd.gradcheck(loss, tuple(student))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gradient_is_the_rounded_exact_one(backend, dtype):
    student, teacher, rows, weights = problem(dtype=dtype)
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    arguments = dict(teacher_rows=rows, weights=weights)
    ff.ops.clustering_cross_entropy(student, targets, **arguments).sum().backward()
    exact = [s.detach().float().requires_grad_() for s in student]
    ff.ops.clustering_cross_entropy(exact, targets, **arguments).sum().backward()
    for ours, reference in zip(student, exact, strict=True):
        assert ours.grad.dtype == dtype
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(ours.grad.float(), reference.grad, rtol=tolerance, atol=2e-6)


def test_each_head_has_its_own_gradient(backend):
    student, teacher, rows, weights = problem()
    loss = ff.ops.clustering_cross_entropy(
        student, ff.ops.sinkhorn_targets(teacher, 0.05), teacher_rows=rows, weights=weights
    )
    loss[2].backward()
    assert [bool(s.grad.any()) for s in student] == [False, False, True, False]


def test_same_bits_on_repeated_calls(backend):
    student, teacher, rows, weights = problem(40, 20)
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    results = []
    for _ in range(2):
        loss = ff.ops.clustering_cross_entropy(student, targets, teacher_rows=rows, weights=weights)
        results.append([loss, *torch.autograd.grad(loss.sum(), student)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def streamed_sides():
    """Student and teacher, of ten and six rows: features, prototypes and scales."""
    return [
        [torch.randn(n, 8, requires_grad=trained) for _ in COLUMNS]
        + [torch.randn(k, 8, requires_grad=trained) for k in COLUMNS]
        + [torch.rand(k, requires_grad=trained) for k in COLUMNS]
        for n, trained in ((10, True), (6, False))
    ]


@pytest.mark.parametrize("form", ["stored", "streamed"])
def test_operator_keeps_pytorchs_contract(form):
    student, teacher, rows, weights = problem()
    if form == "streamed":
        student, teacher = streamed_sides()
    n_heads = len(COLUMNS)
    potentials = torch.ops.franca_fast.sinkhorn_potentials(teacher, n_heads, 0.05, 3, 6, None)
    opcheck(
        torch.ops.franca_fast.clustering_cross_entropy.default,
        (student, teacher, *potentials, 0.1, 0.05, rows, weights, False),
    )


def loss_of_scores(leaves, targets, **options):
    """The loss of scores that nothing else needs, and those scores."""
    student = [leaf * 2 for leaf in leaves]
    return ff.ops.clustering_cross_entropy(student, targets, **options), student


def test_gradient_may_take_the_place_of_the_logits(backend):
    leaves, teacher, rows, weights = problem(40, 20)
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    options = dict(teacher_rows=rows, weights=weights)
    expected = torch.autograd.grad(loss_of_scores(leaves, targets, **options)[0].sum(), leaves)
    loss, student = loss_of_scores(leaves, targets, overwrite_student=True, **options)
    got = torch.autograd.grad(loss.sum(), leaves)
    for ours, reference, s in zip(got, expected, student, strict=True):
        assert torch.equal(ours, reference)
        assert torch.equal(2 * s.detach(), reference)  # where the logits were


def test_overwriting_works_on_parts_and_under_compilation(backend):
    leaves, teacher, _, _ = problem(20, 8)
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    rows = torch.arange(8).to(DEVICE).unsqueeze(1)
    options = dict(teacher_rows=rows)

    def total(split, overwrite):
        parts = [split(leaf * 2, [8, 12]) for leaf in leaves]
        first, second = zip(*parts, strict=True)
        second = [part[:8] for part in second]
        losses = [
            ff.ops.clustering_cross_entropy(part, targets, overwrite_student=overwrite, **options)
            for part in (first, second)
        ]
        return losses[0].sum() + 3 * losses[1].sum()

    expected = torch.autograd.grad(total(torch.split, False), leaves)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    for loss in (total(ff.ops.split_rows, True), compiled(torch.split, True)):
        for ours, reference in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
            assert torch.equal(ours, reference)


def test_a_second_backward_pass_over_overwritten_logits_is_refused():
    leaves, teacher, rows, weights = problem()
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    options = dict(teacher_rows=rows, weights=weights, overwrite_student=True)
    loss, student = loss_of_scores(leaves, targets, **options)
    other = sum((s * s).sum() for s in student)
    loss.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="overwrite_student"):
        loss.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


def square(x):
    return x.pow(2).sum()


# What is made of a leaf [6, 8] and a loss, where overwriting might have wronged somebody.
SHARED_LOGITS = {
    "view": lambda x, loss: loss([x.exp()[:]]),
    "reshaped": lambda x, loss: loss([torch.tanh(x.reshape(48)).reshape(6, 8)]),
    "view of the leaf": lambda x, loss: loss([x.view(6, 8)]),
    "view in two places": lambda x, loss: (lambda y: loss([y]) + square(y))((x * 2)[:]),
    "one tensor for two heads": lambda x, loss: (lambda y: loss([y, y]))(x * 2),
    "the teacher's memory": lambda x, loss: (lambda y: loss([y], y.detach().flip(0)))(x * 2),
    "parts of one result": lambda x, loss: sum(
        loss([part]) for part in torch.softmax(x, 1).split([3, 3])
    ),
    "beside a constant": lambda x, loss: loss([x * 2, x.detach()]),
}


def loss_with(overwrite):
    def loss(student, teacher=None):
        n_rows = student[0].shape[0]
        generator = torch.Generator().manual_seed(1)
        if teacher is None:
            teacher = torch.randn(n_rows, 8, generator=generator).to(DEVICE)
        teachers = [teacher] * len(student)
        targets = ff.ops.sinkhorn_targets(teachers, 0.1)
        return ff.ops.clustering_cross_entropy(student, targets, overwrite_student=overwrite).sum()

    return loss


@pytest.mark.parametrize("case", SHARED_LOGITS)
def test_logits_that_others_may_need_are_not_overwritten(case):
    x = torch.randn(6, 8, device=DEVICE, requires_grad=True)
    before = x.detach().clone()
    gradients = [
        torch.autograd.grad(SHARED_LOGITS[case](x, loss_with(overwrite)), x)[0]
        for overwrite in (False, True)
    ]
    assert torch.equal(*gradients)
    assert torch.equal(x.detach(), before)


def test_uses_of_overwritten_logits_are_refused():
    x = torch.randn(6, 8, device=DEVICE, requires_grad=True)
    loss = loss_with(True)
    whole = x * 2
    first, second = ff.ops.split_rows(whole, [3, 3])
    for total in (
        loss([first]) + loss([first]),
        square(second) + loss([second]),
        square(whole) + loss([first]),
    ):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()
    with pytest.raises(InputError, match="leaf"):
        loss([ff.ops.split_rows(x, [6])[0]])


def test_leaves_are_not_overwritten():
    student, teacher, rows, weights = problem()
    options = dict(teacher_rows=rows, weights=weights, overwrite_student=True)
    with pytest.raises(InputError, match=r"overwrite_student: True, but student\[0\]"):
        targets = ff.ops.sinkhorn_targets(teacher, 0.05)
        ff.ops.clustering_cross_entropy(student, targets, **options)


def test_compiles_without_graph_breaks():
    student, teacher, rows, weights = problem()
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)

    def loss(logits):
        return ff.ops.clustering_cross_entropy(
            logits, targets, teacher_rows=rows, weights=weights
        ).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(student), loss(student))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(student_temperature=0.0), "student_temperature: 0.0"),
        (dict(teacher_rows=None), "teacher_rows: None with 10 student and 6 teacher rows"),
        (dict(teacher_rows=torch.zeros(10, 1)), "teacher_rows: torch.float32"),
        (dict(teacher_rows=torch.zeros(9, 1, dtype=torch.int64)), "teacher_rows: shape"),
        (dict(weights=torch.ones(9)), "weights: shape \\(9,\\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    student, teacher, rows, weights = problem()
    arguments = {"teacher_rows": rows, "weights": weights, **change}
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    with pytest.raises(InputError, match=message):
        ff.ops.clustering_cross_entropy(student, targets, **arguments)


@pytest.mark.parametrize("value", [6, -1])
def test_teacher_rows_that_do_not_exist_are_refused_or_give_nan(value):
    student, teacher, _, weights = problem()
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    rows = torch.full((10, 1), value)

    def loss():
        return ff.ops.clustering_cross_entropy(student, targets, teacher_rows=rows, weights=weights)

    if DEVICE.type == "cpu":
        with pytest.raises(InputError, match=f"teacher_rows: values {value}..{value}"):
            loss()
    else:  # where reading the values would stall the stream
        assert loss().isnan().all()


def test_heads_that_do_not_match_are_refused():
    student, teacher, _, _ = problem()
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    with pytest.raises(InputError, match="student: columns"):
        ff.ops.clustering_cross_entropy(student[:2], targets)
    fewer = targets._replace(scores=ff.ops.Scores(teacher[:2]))
    with pytest.raises(InputError, match=r"targets\.potentials\.prototype: shapes"):
        ff.ops.clustering_cross_entropy(student[:2], fewer)


def test_stored_and_streamed_sides_do_not_go_together():
    stored = torch.randn(6, 8)
    streamed = ff.ops.Scores([torch.randn(6, 4)], [torch.randn(8, 4)], [torch.rand(8)])
    for student, teacher, words in (
        (stored, streamed, "stored scores beside streamed ones"),
        (streamed, stored, "streamed scores beside stored ones"),
    ):
        targets = ff.ops.sinkhorn_targets(teacher, 0.05)
        with pytest.raises(InputError, match=f"student: {words}"):
            ff.ops.clustering_cross_entropy(student, targets)
