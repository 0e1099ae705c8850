"""Positions are removed from the patch tokens of any encoder, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.hub.projector import PositionProjector
from franca_fast.models import ProjectedEncoder, VisionTransformer

IMAGES = torch.randn(2, 3, 28, 42)


class Wrapped(nn.Module):
    """Another module around one of ours, which is then no `VisionTransformer`."""

    patch_size, embed_dim, depth, config = 7, 32, 3, {"img_size": 28}

    def __init__(self) -> None:
        super().__init__()
        sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 2}
        self.inner = VisionTransformer(**sizes, num_register_tokens=2).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)

    def forward_features(self, images: Tensor, **options: Any) -> Any:
        return self.inner.forward_features(images, **options)

    def get_intermediate_layers(self, *args: Any) -> Any:
        return self.inner.get_intermediate_layers(*args)

    def last_keys(self, images: Tensor) -> Tensor:
        return images.mean(1)


class Plain:
    """No module at all."""

    patch_size = 7

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        tokens = images.unfold(2, 7, 7).unfold(3, 7, 7).flatten(4).mean(4)
        tokens = tokens.flatten(2).transpose(1, 2)
        return {"x_norm_clstoken": tokens.mean(1), "x_norm_patchtokens": tokens}


@pytest.fixture
def projector() -> PositionProjector:
    return PositionProjector(torch.randn(3, 2, 32))


@pytest.fixture
def encoder() -> Wrapped:
    return Wrapped().eval()


def test_only_normalised_patch_tokens_change(
    encoder: Wrapped, projector: PositionProjector
) -> None:
    before = encoder.forward_features(IMAGES)
    clean = projector.attach(encoder)
    assert isinstance(clean, ProjectedEncoder) and not clean.training
    after = clean.forward_features(IMAGES)
    assert after.keys() == before.keys()
    for name in ("x_norm_clstoken", "x_norm_regtokens", "x_prenorm"):
        assert torch.equal(after[name], before[name])
    expected = projector.apply(before["x_norm_patchtokens"])
    assert torch.equal(after["x_norm_patchtokens"], expected)
    assert (expected - before["x_norm_patchtokens"]).abs().max() > 1e-2
    assert torch.equal(clean(IMAGES), encoder(IMAGES))
    assert torch.equal(clean.last_keys(IMAGES), encoder.last_keys(IMAGES))
    masks = torch.ones(2, 24, dtype=torch.bool)
    masked = clean.forward_features(IMAGES, masks=masks)["x_norm_patchtokens"]
    assert not torch.equal(masked, expected)  # options reach the encoder
    assert (clean.patch_size, clean.embed_dim, clean.depth) == (7, 32, 3)
    assert clean.config == {"img_size": 28}


@pytest.mark.parametrize("reshape", [False, True])
@pytest.mark.parametrize("with_cls", [False, True])
@pytest.mark.parametrize(("n", "norm"), [(2, True), ([0, 2], True), ([0, 1], True), (2, False)])
def test_layers_are_those_of_a_projected_backbone(
    encoder: Wrapped,
    projector: PositionProjector,
    reshape: bool,
    with_cls: bool,
    n: Any,
    norm: bool,
) -> None:
    options = (n, reshape, with_cls, norm)
    given = projector.attach(encoder).get_intermediate_layers(IMAGES, *options)
    expected = projector.attach(encoder.inner).get_intermediate_layers(IMAGES, *options)
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


def test_an_object_that_is_no_module_will_do() -> None:
    projector = PositionProjector(torch.randn(1, 2, 3))
    clean = projector.attach(Plain())
    tokens = clean.forward_features(IMAGES)["x_norm_patchtokens"]
    raw = Plain().forward_features(IMAGES)["x_norm_patchtokens"]
    assert torch.equal(tokens, projector.apply(raw))
    assert (clean.embed_dim, clean.depth, clean.config) == (3, None, {})
    with pytest.raises(InputError, match="without get_intermediate_layers"):
        clean.get_intermediate_layers(IMAGES)
    with pytest.raises(InputError, match="without last_keys"):
        clean.last_keys(IMAGES)


def test_what_does_not_fit_is_refused(encoder: Wrapped, projector: PositionProjector) -> None:
    with pytest.raises(InputError, match="a projector for width 8; accepted: the model's, 32"):
        PositionProjector(torch.randn(1, 2, 8)).attach(encoder)
    with pytest.raises(InputError, match="removes positions already"):
        projector.attach(projector.attach(encoder))
    with pytest.raises(InputError, match="removes positions already"):
        ProjectedEncoder(projector.attach(encoder.inner), projector.module())
    with pytest.raises(InputError, match="no patch tokens; accepted: a module with forward_feat"):
        projector.attach(nn.Identity())


def test_block_numbers_need_a_depth(
    encoder: Wrapped, projector: PositionProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrapped, "depth", None)
    clean = projector.attach(encoder)
    assert len(clean.get_intermediate_layers(IMAGES, 2)) == 2
    with pytest.raises(InputError, match="without depth"):
        clean.get_intermediate_layers(IMAGES, [2])
