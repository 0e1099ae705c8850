"""Targets: what balanced and centred ones are made of."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import franca_fast as ff
from franca_fast.ops import Scores
from python_tests.helpers import backends_of


@pytest.fixture(params=backends_of("sinkhorn"))
def backend(request):
    with ff.use_backend(request.param):
        yield request.param


def test_balanced_targets_are_scores_potentials_and_temperature():
    z = [torch.randn(6, k) for k in (8, 32)]
    targets = ff.ops.sinkhorn_targets(z, 0.05, 2, n_valid=5)
    expected = ff.ops.sinkhorn_potentials(z, 0.05, 2, n_valid=5)
    assert all(map(torch.equal, sum(targets.potentials, ()), sum(expected, ())))
    assert targets.scores.values == tuple(z) and not targets.scores.streamed
    assert targets.temperature == 0.05 and targets.mean_scores is None


def test_scores_are_taken_as_they_are():
    scores = Scores([torch.randn(6, 4)], [torch.randn(8, 4)], [torch.rand(8)])
    assert ff.ops.sinkhorn_targets(scores, 0.05).scores is scores


def test_centred_targets_are_a_softmax_of_centred_scores(backend):
    z, c = torch.randn(5, 9), torch.randn(9)
    targets = ff.ops.centered_targets(z, 0.1, [c])
    a, b = (part[0] for part in targets.potentials)
    q = torch.exp(z / 0.1 + a + b[:, None])
    torch.testing.assert_close(q, torch.softmax((z - c) / 0.1, dim=1), rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize(("n_valid", "counted"), [(None, 5), (3, 3)])
def test_centred_targets_carry_the_mean_of_the_valid_rows(n_valid, counted):
    z = torch.randn(5, 9)
    targets = ff.ops.centered_targets(z, 0.1, [torch.zeros(9)], n_valid=n_valid)
    torch.testing.assert_close(targets.mean_scores[0], z[:counted].mean(dim=0))


@pytest.mark.parametrize("form", ["stored", "streamed"])
def test_means_of_float64_scores_are_float64(form):
    x, v, s = (torch.rand(*shape, dtype=torch.float64) for shape in ((5, 4), (9, 4), (9,)))
    z = s * (x @ v.T)
    scores = Scores([x], [v], [s]) if form == "streamed" else z
    targets = ff.ops.centered_targets(scores, 0.1, [torch.zeros(9, dtype=torch.float64)])
    torch.testing.assert_close(targets.mean_scores[0], z.mean(dim=0), rtol=1e-14, atol=0)


def test_no_valid_rows_have_a_mean_of_zero():
    targets = ff.ops.centered_targets(torch.randn(5, 9), 0.1, [torch.zeros(9)], n_valid=0)
    assert not targets.mean_scores[0].any()


def test_operator_keeps_pytorchs_contract():
    z, a = [torch.randn(6, 8)], torch.randn(8)
    operator = torch.ops.franca_fast.row_potentials.default
    opcheck(operator, (z, 1, 0.05, a, 5))
    opcheck(operator, ([*z, torch.randn(8, 8), torch.rand(8)], 1, 0.05, a, 5))
