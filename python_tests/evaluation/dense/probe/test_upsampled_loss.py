from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from franca_fast.evaluation.dense.probe import upsampled_loss
from franca_fast.evaluation.dense.probe.crops import NOT_COUNTED
from franca_fast.evaluation.dense.probe.upsampled_loss import UpsampledLoss

# Finer, equal, and coarser on one side; single rows and columns.
CASES = [
    ((3, 4), (14, 17)),
    ((5, 5), (5, 5)),
    ((1, 6), (9, 40)),
    ((6, 7), (13, 4)),
    ((2, 1), (1, 1)),
]


@pytest.mark.parametrize(("grid", "pixels"), CASES)
@pytest.mark.parametrize("at_once", [1, 200, 2**20])
def test_equals_interpolation_and_autograd_in_float64(
    grid: tuple[int, int], pixels: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(upsampled_loss._AT_ONCE, "cpu", at_once)
    logits = (5 * torch.randn(4, *grid, dtype=torch.float64)).requires_grad_()
    target = torch.randint(4, pixels)
    target[torch.rand(pixels) < 0.3] = NOT_COUNTED
    upsampled = F.interpolate(logits[None], pixels, mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, target[None], ignore_index=NOT_COUNTED, reduction="sum")
    expected.backward()
    loss, gradient = UpsampledLoss(grid, pixels, logits)(logits.detach(), target)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-12, atol=1e-12)


def test_nothing_that_counts_gives_nothing() -> None:
    logits = torch.randn(3, 2, 2)
    target = torch.full((4, 4), NOT_COUNTED)
    loss, gradient = UpsampledLoss((2, 2), (4, 4), logits)(logits, target)
    assert loss == 0 and not gradient.any()


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[[1e4]], [[-1e4]]])
    target = torch.ones(2, 2, dtype=torch.int64)
    loss, gradient = UpsampledLoss((1, 1), (2, 2), logits)(logits, target)
    assert loss == 4 * 2e4 and gradient.flatten().tolist() == [4, -4]
