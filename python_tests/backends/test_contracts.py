"""What crosses the seam: scores in both forms."""

from __future__ import annotations

import pytest
import torch

from franca_fast.backends.contracts import Scores, potential_dtype

Z = torch.zeros(6, 8)
STREAMED = Scores([torch.zeros(6, 4)] * 2, [torch.zeros(8, 4), torch.zeros(3, 4)], [Z[0], Z[0, :3]])


@pytest.mark.parametrize("given", [Z, [Z], (Z,), Scores((Z,))], ids=["one", "list", "tuple", "all"])
def test_everything_that_operators_take_becomes_scores(given):
    scores = Scores.of(given)
    assert scores.values[0] is Z and not scores.streamed
    assert scores.n_rows == 6 and scores.columns == [8]


def test_streamed_scores_have_a_column_for_each_prototype():
    assert Scores.of(STREAMED) is STREAMED and STREAMED.streamed
    assert STREAMED.n_rows == 6 and STREAMED.columns == [8, 3]


def test_potentials_are_as_precise_as_the_scores_and_at_least_float32():
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    found = [potential_dtype(Z.to(dtype)) for dtype in dtypes]
    assert found == [torch.float64, torch.float32, torch.float32, torch.float32]
