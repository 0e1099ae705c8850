"""Streamed scores give what stored ones give, in blocks."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.backends.torch import streamed_clustering
from franca_fast.ops import Scores, prototype_scores

HEADS = ((1, 3), (40, 16), (301, 8))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # A few rows a block, so that every pass joins several blocks.
    monkeypatch.setattr(streamed_clustering, "_BLOCK_SCORES", 1000)


def streamed(n, dtype=torch.float32):
    scale_dtype = torch.promote_types(dtype, torch.float32)
    return Scores(
        tuple(torch.randn(n, c, dtype=dtype, requires_grad=True) for _, c in HEADS),
        tuple(torch.randn(k, c, dtype=dtype, requires_grad=True) for k, c in HEADS),
        tuple(torch.rand(k, dtype=scale_dtype, requires_grad=True) for k, _ in HEADS),
    )


def stored(scores):
    return prototype_scores(scores.values, scores.prototypes, scales=scores.scales)


@pytest.mark.parametrize("n_valid", [None, 0, 5])
def test_potentials_equal_those_of_stored_scores(n_valid):
    scores = streamed(17)
    ours = ff.ops.sinkhorn_potentials(scores, 0.05, n_valid=n_valid)
    theirs = ff.ops.sinkhorn_potentials(stored(scores), 0.05, n_valid=n_valid)
    for a, b in zip(ours.prototype + ours.row, theirs.prototype + theirs.row, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_valid", [None, 5])
def test_centred_targets_equal_those_of_stored_scores(n_valid):
    scores = streamed(17)
    center = [torch.randn(k) for k, _ in HEADS]
    ours, theirs = (
        ff.ops.centered_targets(z, 0.05, center, n_valid=n_valid) for z in (scores, stored(scores))
    )
    for b, expected in zip(ours.potentials.row, theirs.potentials.row, strict=True):
        torch.testing.assert_close(b, expected, rtol=1e-5, atol=1e-4)
    for mean, expected in zip(ours.mean_scores, theirs.mean_scores, strict=True):
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("n_student", "n_teacher", "n_targets"), [(23, 9, 2), (1, 1, 1), (0, 3, 1)]
)
def test_loss_and_gradients_equal_those_of_stored_scores(n_student, n_teacher, n_targets):
    student, teacher = streamed(n_student), streamed(n_teacher)
    rows = torch.randint(n_teacher, (n_student, n_targets))
    options = dict(teacher_rows=rows, weights=torch.rand(n_student))
    of_stored = ff.ops.sinkhorn_targets(stored(teacher), 0.05)
    inputs = [tensor for part in student for tensor in part]
    results = []
    for s, targets in (
        (student, of_stored._replace(scores=teacher)),
        (stored(student), of_stored),
    ):
        loss = ff.ops.clustering_cross_entropy(s, targets, **options)
        results.append([loss, *torch.autograd.grad(loss.sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    student, teacher = (Scores(*(part[:2] for part in streamed(n, torch.float64))) for n in (4, 3))
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    rows = torch.tensor([[0, 1], [2, 2], [1, 0], [0, 2]])

    def loss(*tensors):
        own = Scores(tensors[:2], tensors[2:4], tensors[4:])
        return ff.ops.clustering_cross_entropy(own, targets, teacher_rows=rows)

    assert torch.autograd.gradcheck(loss, [t for part in student for t in part])
