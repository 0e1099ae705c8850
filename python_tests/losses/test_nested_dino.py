"""The image-level loss: golden values, the weighting of crops, both forms of scores."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import heads, sinkhorn_float64

OUT_DIMS = (8, 40)


def problem(n_images=3, n_local=4):
    def draw(rows):
        return [torch.randn(rows, k) for k in OUT_DIMS]

    return draw(2 * n_images), draw(n_local * n_images), draw(2 * n_images)


def test_equals_golden(golden):
    """The golden assignments are in swapped order; the loss wants the teacher's own order."""
    q = [torch.cat([q[4:], q[:4]]) for q in heads(golden, "sinkhorn.assignments")]
    loss = ff.losses.NestedDINOLoss([x.shape[1] for x in q])
    zeros = ff.ops.SinkhornPotentials(
        tuple(torch.zeros(x.shape[1]) for x in q), tuple(torch.zeros(8) for _ in q)
    )
    targets = ff.ops.ClusteringTargets(ff.ops.Scores([x.log() * 0.05 for x in q]), zeros, 0.05)
    parts = loss(heads(golden, "loss.student_global"), heads(golden, "loss.student_local"), targets)
    # L = 3: (2 * global + local) / 8. The local pairs are symmetric in the teacher's crops.
    expected = {"global": golden["loss.dino_global"] / 4, "local": golden["loss.dino_local"] / 8}
    for name, value in expected.items():
        torch.testing.assert_close(parts[name].sum(), value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("n_local", [0, 1, 4])
def test_equals_the_sum_over_pairs_of_crops(n_local):
    n_images = 3
    student_global, student_local, teacher = problem(n_images, max(1, n_local))
    loss = ff.losses.NestedDINOLoss(OUT_DIMS)
    parts = loss(student_global, student_local if n_local else None, loss.targets(teacher, 0.05))
    for head in range(len(OUT_DIMS)):
        q = sinkhorn_float64(teacher[head], 0.05).split(n_images)
        crops = [*student_global[head].split(n_images)]
        crops += student_local[head].split(n_images) if n_local else []
        terms = [
            -(q[t] * torch.log_softmax(s.double() / 0.1, dim=1)).sum(dim=1).mean()
            for i, s in enumerate(crops)
            for t in range(2)
            if i >= 2 or t != i
        ]
        assert len(terms) == 2 + 2 * n_local
        total = parts["global"][head] + parts["local"][head]
        torch.testing.assert_close(total.double(), sum(terms) / len(terms), rtol=1e-5, atol=0)


def test_one_nested_dimension_works():
    loss = ff.losses.NestedDINOLoss([16])
    student = torch.randn(4, 16, requires_grad=True)
    parts = loss([student], None, loss.targets([torch.randn(4, 16)], 0.05))
    parts["global"].sum().backward()
    assert student.grad.any()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((5, 6, 5), "student_global: 5 rows"),
        ((4, 6, 6), "student_global: 4 rows with 6"),
        ((6, 4, 6), "student_local: 4 rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, message):
    student_global, student_local, teacher = ([torch.randn(n, k) for k in OUT_DIMS] for n in rows)
    loss = ff.losses.NestedDINOLoss(OUT_DIMS)
    with pytest.raises(InputError, match=message):
        loss(student_global, student_local, loss.targets(teacher, 0.05))


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "centering"])
def test_streamed_scores_give_the_loss_of_stored_ones(centering):
    heads = [ff.models.NestedPrototypeHead(32, 64, hidden_dim=16, bottleneck_dim=8)] * 2
    teacher, student = torch.randn(6, 32), torch.randn(6 + 12, 32)
    losses = []
    for streamed in (False, True):
        loss = ff.losses.NestedDINOLoss(heads[0].out_dims, centering=centering)
        z, scores = heads[0](teacher, streamed=streamed), heads[1](student, streamed=streamed)
        parts = ff.ops.split_rows(ff.ops.Scores.of(scores), [6, 12])
        targets = loss.targets(z, 0.05)
        loss.update_center(targets)
        losses.append([*loss(*parts, targets).values(), loss.center])
    for ours, theirs in zip(*losses, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
