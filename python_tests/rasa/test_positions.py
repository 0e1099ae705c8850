from __future__ import annotations

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.rasa.positions import Moments, chance_error, patch_positions


@pytest.fixture
def tokens() -> torch.Tensor:
    mean = torch.randn(1, 12, 8, dtype=torch.float64)
    return torch.randn(50, 12, 8, dtype=torch.float64) + mean + 2


POSITIONS = patch_positions((3, 4))
TARGETS = POSITIONS.double().repeat(50, 1)


def test_positions_run_row_by_row_from_0_to_1():
    assert POSITIONS[0].tolist() == [0, 0]
    assert POSITIONS[3].tolist() == [0, 1]
    assert POSITIONS[8].tolist() == [1, 0]


@pytest.mark.parametrize("n", [2, 4, 16, 37])
def test_chance_is_the_variance_of_the_coordinates(n):
    assert chance_error(patch_positions((n, n))) == pytest.approx((n + 1) / (12 * (n - 1)))


@pytest.mark.parametrize("grid", [(1, 4), (4, 1), (0, 0)])
def test_one_row_has_no_positions(grid):
    with pytest.raises(InputError, match="2 x 2"):
        patch_positions(grid)


def test_moments_are_those_of_all_tokens(tokens):
    moments = Moments(tokens.split(7), POSITIONS)
    flat = tokens.flatten(0, 1)
    assert moments.count == 600
    torch.testing.assert_close(moments.mean, flat.mean(0))
    torch.testing.assert_close(moments.gram, flat.T @ flat / 600)
    centred = TARGETS - TARGETS.mean(0)
    torch.testing.assert_close(moments.covariance, flat.T @ centred / 600)


def test_probe_is_the_least_squares_solution(tokens):
    moments = Moments([tokens], POSITIONS)
    weights, bias = moments.probe(torch.eye(8).double())
    inputs = torch.cat([tokens.flatten(0, 1), torch.ones(600, 1).double()], 1)
    solution = torch.linalg.lstsq(inputs, TARGETS - 0.5).solution
    torch.testing.assert_close(weights, solution[:8].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, solution[8], rtol=1e-4, atol=1e-4)


def test_error_of_a_probe_on_other_tokens(tokens):
    moments = Moments([tokens], POSITIONS)
    weights, bias = torch.randn(2, 8).double(), torch.randn(2).double()
    answers = tokens.flatten(0, 1) @ weights.T + bias + 0.5
    expected = (answers - TARGETS).square().mean()
    assert moments.error((weights, bias)) == pytest.approx(float(expected))


def test_energies_are_mean_squared_lengths(tokens):
    moments, matrix = Moments([tokens], POSITIONS), torch.randn(8, 8).double()
    flat = tokens.flatten(0, 1)
    assert moments.energy(matrix) == pytest.approx(float((flat @ matrix.T).square().sum(1).mean()))
    spread = ((flat - flat.mean(0)) @ matrix.T).square().sum(1).mean()
    assert moments.spread(matrix) == pytest.approx(float(spread))


def test_probe_works_behind_a_projection(tokens):
    matrix = torch.eye(8).double()
    matrix[2, 2] = matrix[5, 5] = 0
    moments = Moments([tokens], POSITIONS)
    kept = Moments([tokens[..., [0, 1, 3, 4, 6, 7]]], POSITIONS)
    error = moments.error(moments.probe(matrix))
    assert error == pytest.approx(kept.error(kept.probe(torch.eye(6).double())), rel=1e-6)


def test_no_tokens_are_refused():
    with pytest.raises(InputError, match="none"):
        Moments([], POSITIONS)
