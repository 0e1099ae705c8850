"""What the gradients of all operators have in common."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import franca_fast as ff
from python_tests.helpers import DEVICE


def scores(x):
    return torch.cat(ff.ops.prototype_scores([x], [torch.ones(3, 8, device=DEVICE)]))


def loss(x):
    teacher = torch.randn(6, 8, device=DEVICE)
    return ff.ops.clustering_cross_entropy(x, ff.ops.sinkhorn_targets(teacher, 0.1))


def streamed_loss(x):
    def streamed(features):
        one = torch.ones(8, device=DEVICE)
        return ff.ops.Scores((features,), (torch.eye(8, device=DEVICE),), (one,))

    targets = ff.ops.sinkhorn_targets(streamed(torch.randn(6, 8, device=DEVICE)), 0.1)
    return ff.ops.clustering_cross_entropy(streamed(x), targets)


def attention(x):
    q = x.view(6, 1, 8)
    return ff.ops.varlen_attention(q, q, q, [2, 4])


def attention_qkv(x):
    return ff.ops.varlen_attention_qkv(x.repeat(1, 3).view(6, 3, 1, 8), [2, 4])


def swiglu(x):
    return ff.ops.swiglu(x)


OPERATORS = [scores, loss, streamed_loss, attention, attention_qkv, swiglu]


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_gradient_of_a_gradient_is_refused_and_not_wrong(operator):
    x = torch.randn(6, 8, device=DEVICE, requires_grad=True)
    (gradient,) = torch.autograd.grad(operator(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"franca_fast.*cannot be differentiated again"):
        gradient.pow(2).sum().backward()
    y = operator(x)
    (gradient,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"franca_fast.*cannot be differentiated again"):
        torch.autograd.grad(y.sum() + gradient.pow(2).sum(), x)
    plain = torch.autograd.grad(operator(x).pow(2).sum(), x)[0]
    assert plain.shape == gradient.shape


@pytest.mark.parametrize("operator", OPERATORS)
def test_forward_mode_is_refused_and_not_zero(operator):
    x = torch.randn(6, 8, device=DEVICE)
    with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        torch.func.jvp(operator, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
            operator(dual)
        assert operator(x).isfinite().all()  # what has no tangent is computed
