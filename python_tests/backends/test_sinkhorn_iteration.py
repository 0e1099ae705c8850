"""The iteration over the passes of a backend."""

from __future__ import annotations

import pytest
import torch

from franca_fast.backends._sinkhorn_iteration import balance
from franca_fast.backends.contracts import Scores
from franca_fast.backends.torch.sinkhorn import column_logsumexp, row_step
from python_tests.helpers import sinkhorn_float64


@pytest.mark.parametrize("n_iterations", [1, 2, 5])
def test_potentials_are_those_of_alternating_normalisation(n_iterations):
    z = torch.randn(7, 20, dtype=torch.float64)
    a, b = balance(column_logsumexp, row_step, Scores([z]), 0.1, n_iterations, 7)
    q = torch.exp(z / 0.1 + a + b[0].unsqueeze(1))
    torch.testing.assert_close(q, sinkhorn_float64(z, 0.1, n_iterations))


def test_no_rows_leave_the_prototypes_alone():
    a, b = balance(column_logsumexp, row_step, Scores([torch.randn(2, 5)]), 0.1, 3, 0)
    assert not a.any() and (b == float("-inf")).all()


def test_a_missing_number_is_not_taken_for_no_mass():
    a, _ = balance(
        column_logsumexp, row_step, Scores([torch.full((3, 4), float("nan"))]), 0.1, 3, 3
    )
    assert a.isnan().all()
