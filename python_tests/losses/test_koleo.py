"""KoLeo against the golden value and its definition."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError


def test_equals_golden(golden):
    loss = ff.losses.KoLeoLoss()(golden["koleo.features"])
    torch.testing.assert_close(loss, golden["koleo.loss"], rtol=1e-5, atol=0)


def test_gradient():
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ff.losses.KoLeoLoss(), x)


def test_one_image_gives_zero_with_a_gradient():
    x = torch.randn(1, 7, requires_grad=True)
    loss = ff.losses.KoLeoLoss()(x)
    loss.backward()
    assert loss.item() == 0.0 and not x.grad.any()


def test_identical_images_stay_finite():
    x = torch.ones(4, 7, requires_grad=True)
    loss = ff.losses.KoLeoLoss()(x)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


def test_computes_in_float32_under_autocast():
    x = torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ff.losses.KoLeoLoss()(x)
    assert torch.equal(inside, ff.losses.KoLeoLoss()(x))


def test_wrong_shape_is_refused():
    with pytest.raises(InputError, match="features: shape \\(8,\\)"):
        ff.losses.KoLeoLoss()(torch.randn(8))
