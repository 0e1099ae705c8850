"""Heads trained at once against heads trained one by one with torch's own modules, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from franca_fast.evaluation.image.block_features import BlockFeatures, InputKind
from franca_fast.evaluation.image.linear_heads import HeadGrid, LinearHeads, cosine

RATES = [1e-3, 1e-2, 0.1, 0.5, 2.0]
CLASSES, WIDTH, STEPS = 7, 11, 30


def batches(n: int = STEPS, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(9, WIDTH, generator=generator, dtype=torch.float64) * 3,
            torch.randint(CLASSES, (9,), generator=generator),
        )
        for _ in range(n)
    ]


def trained(rates: list[float], momentum: float = 0.9, **options: object) -> LinearHeads:
    heads = LinearHeads(WIDTH, CLASSES, rates, 3, momentum=momentum, dtype=torch.float64, **options)
    for step, (x, labels) in enumerate(batches()):
        heads.step(x, labels, cosine(step, STEPS))
    return heads


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_equals_heads_trained_one_by_one_with_torchs_modules(momentum: float) -> None:
    heads = LinearHeads(WIDTH, CLASSES, RATES, 3, momentum=momentum, dtype=torch.float64)
    weights = heads.weight.unflatten(0, (len(RATES), CLASSES)).clone()
    plain = []
    for weight, rate in zip(weights, RATES, strict=True):
        layer = nn.Linear(WIDTH, CLASSES, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), rate, momentum=momentum)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        plain.append((layer, optimizer, schedule))
    for step, (x, labels) in enumerate(batches()):
        losses = heads.step(x, labels, cosine(step, STEPS))
        for loss, (layer, optimizer, schedule) in zip(losses, plain, strict=True):
            expected = F.cross_entropy(layer(x), labels)
            torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-10)
            optimizer.zero_grad()
            expected.backward()
            optimizer.step()
            schedule.step()
    logits = heads.logits(x)
    for h, (layer, _, _) in enumerate(plain):
        torch.testing.assert_close(logits[:, h], layer(x).detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            heads.bias.view(len(RATES), -1)[h], layer.bias.detach(), rtol=1e-9, atol=1e-9
        )
    assert not torch.allclose(logits[:, 0], logits[:, 1])


def test_initial_weights_are_drawn_with_the_standard_deviation_and_depend_on_the_seed() -> None:
    first, second, other = (LinearHeads(64, 100, RATES, seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)
    assert first.weight.std() == pytest.approx(0.01, rel=0.02)
    assert first.weight.mean().abs() < 2e-4 and not first.bias.any()
    torch.testing.assert_close(
        first.weight[:100].std(), first.weight[100:200].std(), rtol=0.1, atol=0
    )


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_head_that_overflows_does_nothing_to_the_others_and_is_counted(place: int) -> None:
    rates = [rate if i != place else 1e308 for i, rate in enumerate(RATES)]
    heads, expected = trained(rates), trained(RATES)
    others = [i for i in range(len(RATES)) if i != place]
    weights = [one.weight.unflatten(0, (len(RATES), -1))[others] for one in (heads, expected)]
    assert torch.equal(*weights)
    assert heads.is_finite().tolist() == [i != place for i in range(len(RATES))]
    assert heads.n_not_finite[place] > 0 and not heads.n_not_finite[others].any()


def test_a_loss_that_was_not_finite_once_is_not_forgotten() -> None:
    heads = LinearHeads(2, 2, [0.1, 0.1], 0)
    heads.bias[0] = torch.inf  # of the first head
    heads.step(torch.ones(1, 2), torch.tensor([1]), 0.0)
    heads.weight.zero_(), heads.bias.zero_()
    assert heads.n_not_finite.tolist() == [1, 0] and heads.is_finite().tolist() == [False, True]


def test_ranks_count_the_classes_before_the_right_one_and_break_ties_by_number() -> None:
    heads = LinearHeads(2, 4, [1.0, 1.0], 0)
    heads.weight.zero_()
    heads.bias.copy_(torch.tensor([0.0, 3, 3, 1, 5, 0, 0, 5]))
    x, labels = torch.ones(4, 2), torch.arange(4)
    assert heads.ranks(x, labels).T.tolist() == [[3, 0, 1, 2], [0, 2, 3, 1]]


def test_ranks_among_some_classes() -> None:
    heads = LinearHeads(2, 4, [1.0], 0)
    heads.weight.zero_()
    heads.bias.copy_(torch.tensor([9.0, 3, 3, 1]))
    x, labels = torch.ones(3, 2), torch.tensor([1, 2, 3])
    assert heads.ranks(x, labels, torch.tensor([1, 2, 3])).flatten().tolist() == [0, 1, 2]
    assert heads.ranks(x, labels).flatten().tolist() == [1, 2, 3]


def test_a_grid_is_its_heads_each_on_its_own_input() -> None:
    kinds, widths = [InputKind(1, False), InputKind(2, True)], [2, 5]
    generator = torch.Generator().manual_seed(0)
    features = BlockFeatures(
        torch.randn(6, 2, 5, generator=generator), torch.randn(6, 5, generator=generator)
    )
    labels = torch.arange(6) % 3
    grid = HeadGrid(kinds, widths, 3, [0.1, 1.0], 4)
    for _ in range(3):
        grid.step(features, labels, 0.5)
    ranks = grid.ranks(features, labels)
    for m in widths:
        parts = []
        cls_tokens, mean = features.cls_tokens[:, :, :m], features.patch_mean[:, :m]
        for x in (cls_tokens[:, 1], torch.cat([cls_tokens[:, 0], cls_tokens[:, 1], mean], 1)):
            heads = LinearHeads(x.shape[1], 3, [0.1, 1.0], 4)
            for _ in range(3):
                heads.step(x, labels, 0.5)
            parts.append(heads.ranks(x, labels))
        assert torch.equal(ranks[m], torch.cat(parts, 1))
        assert grid.is_finite(m).tolist() == [True] * 4


def test_cosine_is_torchs_schedule() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for step in range(8):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cosine(step, 8), abs=1e-12)
        optimizer.step()
        schedule.step()
