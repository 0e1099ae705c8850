"""Scores on their way through the dispatcher."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import franca_fast as ff
from franca_fast.ops import Scores
from franca_fast.ops._library import packed, unpacked

STORED = Scores([torch.zeros(3, 5), torch.zeros(3, 7)])
STREAMED = Scores(
    [torch.zeros(3, 2), torch.zeros(3, 4)],
    [torch.zeros(5, 2), torch.zeros(7, 4)],
    [torch.ones(5), torch.ones(7)],
)


@pytest.mark.parametrize("scores", [STORED, STREAMED], ids=["stored", "streamed"])
def test_scores_come_out_as_they_went_in(scores):
    again = unpacked(packed(scores), 2)
    for name in ("values", "prototypes", "scales"):
        ours, theirs = getattr(again, name), getattr(scores, name)
        assert len(ours) == len(theirs)
        assert all(one is other for one, other in zip(ours, theirs, strict=True))


class Listener(TorchDispatchMode):
    """Writes down which operators of ours the dispatcher is asked for."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "franca_fast":
            self.heard.append(func._opname)
        return func(*args, **(kwargs or {}))


def loss_and_gradients(student, teacher):
    student = [s.clone().requires_grad_() for s in student]
    targets = ff.ops.sinkhorn_targets(teacher, 0.05)
    loss = ff.ops.clustering_cross_entropy(student, targets)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), student)]


def scores_and_gradients(features, prototypes):
    x, v = ([m.clone().requires_grad_() for m in side] for side in (features, prototypes))
    scores = ff.ops.prototype_scores(x, v)
    without_the_last = sum(z.square().sum() for z in scores[:-1])
    return [z.detach() for z in scores] + list(torch.autograd.grad(without_the_last, x + v))


@pytest.mark.parametrize("work", [loss_and_gradients, scores_and_gradients])
def test_direct_calls_give_what_the_dispatcher_gives(work):
    arguments = [[torch.randn(6, 4) for _ in range(3)] for _ in range(2)]
    directly = work(*arguments)
    with Listener() as listener:
        dispatched = work(*arguments)
    assert len(listener.heard) >= 2
    assert len(directly) == len(dispatched) and all(map(torch.equal, directly, dispatched))


def test_profilers_see_operators():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        ff.ops.sinkhorn_potentials(torch.randn(3, 5), 0.05)
    assert "franca_fast::sinkhorn_potentials" in {event.name for event in profiler.events()}


def test_views_that_only_negate_are_not_read_as_they_lie():
    z = torch.randn(3, 5)
    expected = ff.ops.sinkhorn_knopp(-z, 0.05)
    assert torch.equal(ff.ops.sinkhorn_knopp(torch._neg_view(z), 0.05), expected)
