"""What the clustering losses share: their targets, and a centre that moves."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError

OUT_DIMS = (8, 40)


def teacher_scores(n_rows=6):
    return [torch.randn(n_rows, k) for k in OUT_DIMS]


def test_centering_is_the_softmax_of_centred_logits():
    teacher = teacher_scores()
    loss = ff.losses.ClusteringLoss(OUT_DIMS, centering="centering")
    loss.center.normal_()
    targets = loss.targets(teacher, 0.05)
    for z, a, b, c in zip(teacher, *targets.potentials, loss.center.split(OUT_DIMS), strict=True):
        expected = torch.softmax((z - c) / 0.05, dim=1)
        torch.testing.assert_close(
            torch.exp(z / 0.05 + a + b[:, None]), expected, rtol=1e-4, atol=1e-6
        )


def test_balanced_targets_take_the_losses_number_of_iterations():
    teacher = teacher_scores()
    targets = ff.losses.ClusteringLoss(OUT_DIMS, n_iterations=5).targets(teacher, 0.05, n_valid=4)
    expected = ff.ops.sinkhorn_potentials(teacher, 0.05, 5, n_valid=4)
    assert all(map(torch.equal, sum(targets.potentials, ()), sum(expected, ())))


def test_center_moves_only_when_told():
    teacher = teacher_scores()
    loss = ff.losses.ClusteringLoss(OUT_DIMS, centering="centering", center_momentum=0.9)
    targets = loss.targets(teacher, 0.05)
    assert not loss.center.any()
    loss.update_center(targets)
    expected = 0.1 * torch.cat([z.mean(dim=0) for z in teacher])
    torch.testing.assert_close(loss.center, expected)


def test_balanced_targets_leave_a_loss_without_a_centre_alone():
    loss = ff.losses.ClusteringLoss(OUT_DIMS)
    loss.update_center(loss.targets(teacher_scores(), 0.05))
    assert loss.center is None


def test_center_is_saved_with_the_loss():
    assert "center" in ff.losses.ClusteringLoss(OUT_DIMS, centering="centering").state_dict()
    assert not ff.losses.ClusteringLoss(OUT_DIMS).state_dict()


def test_unknown_centering_is_refused():
    with pytest.raises(InputError, match="centering: 'mean'"):
        ff.losses.ClusteringLoss(OUT_DIMS, centering="mean")
