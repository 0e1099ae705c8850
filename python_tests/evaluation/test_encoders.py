"""What an encoder may be, and what is taken from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation import embed
from franca_fast.hub import save_backbone
from franca_fast.models import VisionTransformer


def test_poolings(model: VisionTransformer, images: Path) -> None:
    cls = embed(model, images, pooling="cls").features
    patches = embed(model, images, pooling="patch_mean").features
    both = embed(model, images, pooling="cls_patch_mean").features
    assert not torch.allclose(cls, patches)
    torch.testing.assert_close(both, torch.cat([cls, patches], 1))


def test_any_callable_is_an_encoder(images: Path) -> None:
    def mean_colour(batch: Tensor) -> Tensor:
        return batch.mean((2, 3))

    assert embed(mean_colour, images, img_size=16).features.shape == (5, 3)
    with pytest.raises(InputError, match="without forward_features"):
        embed(mean_colour, images, img_size=16, pooling="patch_mean")


def test_mode_of_the_model_is_restored(model: VisionTransformer, images: Path) -> None:
    model.train()
    embed(model, images)
    assert model.training


def test_model_by_path(model: VisionTransformer, images: Path, tmp_path: Path) -> None:
    save_backbone(model, tmp_path / "teacher")
    expected = embed(model, images).features
    torch.testing.assert_close(embed(tmp_path / "teacher", images).features, expected)
