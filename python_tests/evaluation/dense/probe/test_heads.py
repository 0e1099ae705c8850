"""Heads of all widths at once against torch's own modules, one by one, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from franca_fast.evaluation.dense.probe.crops import NOT_COUNTED
from franca_fast.evaluation.dense.probe.heads import (
    SegmentationHeads,
    dropout,
    train_step,
)

WIDTH, DIMS, CLASSES, GRID, PIXELS, STEPS = 6, (2, 5, 6), 4, (3, 4), (14, 17), 12
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-3),
}


def batch(step: int, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randn(3, *GRID, WIDTH, generator=generator, dtype=torch.float64) * 3 + 1
    targets = torch.randint(CLASSES, (3, *PIXELS), generator=generator)
    left_out = torch.rand(targets.shape, generator=generator) < ignored
    return tokens, targets.masked_fill(left_out, NOT_COUNTED)


class Plain(nn.Module):
    """What one head is, of torch's modules."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(weight.shape[1], dtype=torch.float64)
        self.conv = nn.Conv2d(weight.shape[1], len(weight), 1, dtype=torch.float64)
        with torch.no_grad():
            self.conv.weight.copy_(weight[..., None, None])
            self.conv.bias.zero_()

    def forward(self, tokens: Tensor, kept: Tensor | None) -> Tensor:
        x = self.norm(tokens.permute(0, 3, 1, 2))
        return self.conv(x if kept is None else x * kept[..., None, None])


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equals_torchs_modules_trained_one_by_one(kind: str, rate: float) -> None:
    heads = SegmentationHeads(WIDTH, DIMS, CLASSES, 0, dtype=torch.float64)
    plain = [Plain(weight.detach()) for weight in heads.weights]
    optimizer = OPTIMIZERS[kind](heads.parameters())
    optimizers = [OPTIMIZERS[kind](head.parameters()) for head in plain]
    for step in range(STEPS):
        tokens, targets = batch(step)
        kept = dropout(3, WIDTH, rate, 0, step).double() if rate else None
        losses = train_step(heads, optimizer, tokens, targets, kept)
        for m, head, own, loss in zip(DIMS, plain, optimizers, losses, strict=True):
            logits = head(tokens[..., :m], None if kept is None else kept[:, :m])
            pixels = F.interpolate(logits, PIXELS, mode="bilinear", align_corners=False)
            expected = F.cross_entropy(pixels, targets, ignore_index=NOT_COUNTED)
            torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-9)
            own.zero_grad()
            expected.backward()
            own.step()
    heads.eval()
    tokens, _ = batch(STEPS)
    for m, head, logits in zip(DIMS, plain, heads(tokens), strict=True):
        torch.testing.assert_close(logits, head.eval()(tokens[..., :m], None), rtol=1e-8, atol=1e-8)


def test_pixels_that_do_not_count_change_nothing() -> None:
    tokens, targets = batch(0)
    found = []
    for n in (3, 4):  # a fourth image that is not counted at all, of tokens like the others'
        heads = SegmentationHeads(WIDTH, DIMS, CLASSES, 0, dtype=torch.float64).eval()
        optimizer = torch.optim.SGD(heads.parameters(), 1.0)
        more = torch.full((n - 3, *PIXELS), NOT_COUNTED)
        losses = train_step(
            heads,
            optimizer,
            torch.cat([tokens, tokens[: n - 3]]),
            torch.cat([targets, more]),
        )
        found.append((losses, *(p.detach() for p in heads.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_without_a_pixel_that_counts_gives_no_gradient() -> None:
    heads = SegmentationHeads(WIDTH, DIMS, CLASSES, 0, dtype=torch.float64)
    before = [p.detach().clone() for p in heads.parameters()]
    tokens, targets = batch(0, ignored=1.0)
    losses = train_step(heads, torch.optim.SGD(heads.parameters(), 1.0), tokens, targets)
    assert losses.tolist() == [0.0] * len(DIMS)
    assert all(map(torch.equal, before, heads.parameters()))


def test_a_width_does_not_depend_on_the_others() -> None:
    weights = []
    for dims in ((5,), DIMS):
        heads = SegmentationHeads(WIDTH, dims, CLASSES, 7, dtype=torch.float64)
        optimizer = torch.optim.SGD(heads.parameters(), 0.1)
        for step in range(2):
            train_step(heads, optimizer, *batch(step))
        weights.append(heads.weights[dims.index(5)].detach())
    torch.testing.assert_close(*weights, rtol=1e-12, atol=0)
    assert weights[0].std() > 0


def test_weights_begin_small_and_depend_on_the_seed() -> None:
    first, second = (SegmentationHeads(200, (100,), 50, seed).weights[0] for seed in (0, 1))
    assert first.std().item() == pytest.approx(0.01, rel=0.05)
    assert not torch.equal(first, second)


def test_dropout_keeps_the_mean_and_drops_whole_channels_at_its_rate() -> None:
    kept = dropout(100, 400, 0.1, 0, 0)
    assert (kept == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert kept.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(kept, dropout(100, 400, 0.1, 0, 0))
    assert not torch.equal(kept, dropout(100, 400, 0.1, 0, 1))
