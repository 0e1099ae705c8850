"""Entropy and used prototypes of assignments that are known."""

from __future__ import annotations

import math

import pytest
import torch

from franca_fast.losses import NestedDINOLoss
from franca_fast.ops import sinkhorn_knopp
from franca_fast.training.reporting.diagnostics import assignment_statistics


def test_collapsed_logits_have_the_largest_entropy_and_one_prototype() -> None:
    loss = NestedDINOLoss([8, 32])
    found = assignment_statistics(loss.targets([torch.zeros(6, 8), torch.zeros(6, 32)], 0.05))
    assert found["entropy"].tolist() == pytest.approx([math.log(8), math.log(32)], rel=1e-5)
    assert found["used_prototypes"].tolist() == [1, 1]


def test_one_prototype_for_each_row_has_no_entropy() -> None:
    found = assignment_statistics(NestedDINOLoss([8]).targets([torch.eye(8)], 0.02))
    assert found["entropy"].item() == pytest.approx(0.0, abs=1e-5)
    assert found["used_prototypes"].item() == 8


def test_entropy_is_that_of_the_assignments() -> None:
    logits = torch.randn(100, 16)
    q = sinkhorn_knopp(logits, 0.5)
    assert isinstance(q, torch.Tensor)
    expected = -(q * q.log()).sum(1).mean()
    found = assignment_statistics(NestedDINOLoss([16]).targets([logits], 0.5))
    assert found["entropy"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert found["used_prototypes"].item() == q.argmax(1).unique().numel()


def test_no_rows_give_zeros() -> None:
    found = assignment_statistics(NestedDINOLoss([16]).targets([torch.zeros(0, 16)], 0.5))
    assert found["entropy"].tolist() == found["used_prototypes"].tolist() == [0.0]
