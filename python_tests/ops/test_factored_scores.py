"""Streamed clustering: scores given as factors equal stored scores, in little memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

import franca_fast as ff
from franca_fast.backends.torch import streamed_clustering
from franca_fast.errors import InputError
from franca_fast.ops import FactoredScores
from python_tests.helpers import DEVICE

HEADS = ((1, 3), (40, 16), (301, 8))
TEMPERATURES = {"teacher_temperature": 0.05, "student_temperature": 0.1}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # A few rows a block, so that every pass joins several blocks.
    monkeypatch.setattr(streamed_clustering, "_BLOCK_SCORES", 1000)


def factors(n, dtype=torch.float32):
    potentials = torch.promote_types(dtype, torch.float32)
    return FactoredScores(
        tuple(torch.randn(n, c, dtype=dtype, requires_grad=True) for _, c in HEADS),
        tuple(torch.randn(k, c, dtype=dtype, requires_grad=True) for k, c in HEADS),
        tuple(torch.rand(k, dtype=potentials, requires_grad=True) for k, _ in HEADS),
    )


def parts(scores):
    return scores.features, scores.prototypes, scores.scales


@pytest.mark.parametrize("n_valid", [None, 0, 5])
def test_potentials_equal_those_of_stored_scores(n_valid):
    scores = factors(17)
    ours = ff.ops.sinkhorn_potentials(scores, 0.05, n_valid=n_valid)
    theirs = ff.ops.sinkhorn_potentials(scores.stored(), 0.05, n_valid=n_valid)
    for a, b in zip(ours.prototype + ours.row, theirs.prototype + theirs.row, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_row_potentials_equal_those_of_stored_scores():
    scores = factors(17)
    a = [torch.randn(k) for k, _ in HEADS]
    ours, theirs = (ff.ops.row_potentials(z, 0.05, a) for z in (scores, scores.stored()))
    for b, expected in zip(ours.row, theirs.row, strict=True):
        torch.testing.assert_close(b, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("n_student", "n_teacher", "n_targets"), [(23, 9, 2), (1, 1, 1), (0, 3, 1)]
)
def test_loss_and_gradients_equal_those_of_stored_scores(n_student, n_teacher, n_targets):
    student, teacher = factors(n_student), factors(n_teacher)
    rows = torch.randint(n_teacher, (n_student, n_targets))
    arguments = dict(teacher_rows=rows, weights=torch.rand(n_student), **TEMPERATURES)
    potentials = ff.ops.sinkhorn_potentials(teacher.stored(), 0.05)
    inputs = [tensor for factor in parts(student) for tensor in factor]
    results = []
    for s, z in ((student, teacher), (student.stored(), teacher.stored())):
        loss = ff.ops.clustering_cross_entropy(s, z, potentials, **arguments)
        results.append([loss, *torch.autograd.grad(loss.sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    student, teacher = factors(4, torch.float64), factors(3, torch.float64)
    student, teacher = (
        FactoredScores(*(f[:2] for f in parts(side))) for side in (student, teacher)
    )
    potentials = ff.ops.sinkhorn_potentials(teacher, 0.05)
    rows = torch.tensor([[0, 1], [2, 2], [1, 0], [0, 2]])

    def loss(*tensors):
        own = FactoredScores(tensors[:2], tensors[2:4], tensors[4:])
        return ff.ops.clustering_cross_entropy(
            own, teacher, potentials, teacher_rows=rows, **TEMPERATURES
        )

    assert torch.autograd.gradcheck(loss, [t for factor in parts(student) for t in factor])


def test_split_shares_the_prototypes():
    scores = factors(10)
    first, second = scores.split([4, 6])
    assert (first.n_rows, second.n_rows) == (4, 6)
    assert second.prototypes is scores.prototypes
    torch.testing.assert_close(
        torch.cat([first.stored()[1], second.stored()[1]]), scores.stored()[1]
    )


def test_the_heads_factors_give_its_scores():
    head = ff.models.NestedPrototypeHead(32, 64, hidden_dim=16, bottleneck_dim=8)
    x = torch.randn(3, 32)
    for autocast in (False, True):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
            for a, b in zip(head(x, factored=True).stored(), head(x), strict=True):
                assert torch.equal(a, b)


def test_operators_keep_pytorchs_contract():
    student, teacher = factors(6), factors(6)
    library = torch.ops.franca_fast
    constants = [[t.detach() for t in factor] for factor in parts(teacher)]
    opcheck(library.factored_sinkhorn_potentials.default, (*constants, 0.05, 3, 6, None))
    prototype, row = library.factored_sinkhorn_potentials(*constants, 0.05, 3, 6, None)
    opcheck(library.factored_row_potentials.default, (*constants, 0.05, prototype, 6))
    own = [list(factor) for factor in parts(student)]
    rows, weights = torch.arange(6).unsqueeze(1), torch.rand(6)
    opcheck(
        library.factored_cross_entropy.default,
        (*own, *constants, prototype, row, 0.1, 0.05, rows, weights),
    )


def test_mixed_kinds_and_shapes_are_refused():
    student, teacher = factors(6), factors(6)
    potentials = ff.ops.sinkhorn_potentials(teacher, 0.05)
    with pytest.raises(InputError, match="teacher_logits: logits beside factored"):
        ff.ops.clustering_cross_entropy(student, teacher.stored(), potentials, **TEMPERATURES)
    with pytest.raises(InputError, match="teacher_logits: FactoredScores beside stored"):
        ff.ops.clustering_cross_entropy(student.stored(), teacher, potentials, **TEMPERATURES)
    fewer = FactoredScores(*(factor[:2] for factor in parts(student)))
    with pytest.raises(InputError, match=r"student_logits\.prototypes: \[1, 40\]"):
        ff.ops.clustering_cross_entropy(fewer, teacher, potentials, **TEMPERATURES)
    with pytest.raises(InputError, match=r"logits\.scales: shapes"):
        ff.ops.sinkhorn_potentials(replace(student, scales=student.scales[:2]), 0.05)
