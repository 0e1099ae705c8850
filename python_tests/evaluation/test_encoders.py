"""What an encoder may be, and what is taken from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation import embed
from franca_fast.evaluation.encoders import inference, pooled_features, precision_of
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


@pytest.mark.parametrize(("fast", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_what_is_asked_for_or_the_machines_choice(
    model: VisionTransformer, monkeypatch: pytest.MonkeyPatch, fast: bool, chosen: str
) -> None:
    monkeypatch.setattr("franca_fast.evaluation.encoders.fast_bfloat16", lambda device: fast)
    asked = ("auto", "bf16", "fp32")
    assert [precision_of(model, name) for name in asked] == [chosen, "bf16", "fp32"]


def test_a_precision_that_does_not_exist_is_named(model: VisionTransformer) -> None:
    with pytest.raises(InputError, match=r"precision: 'bf61' \(did you mean 'bf16'\?\); accepted"):
        precision_of(model, "bf61")


def test_matrix_products_are_in_the_precision_that_is_asked_for(model: VisionTransformer) -> None:
    with inference(model, "bf16"):
        assert model.blocks[0].attn.qkv(torch.ones(1, 32)).dtype == torch.bfloat16
    with inference(model):
        assert model.blocks[0].attn.qkv(torch.ones(1, 32)).dtype == torch.float32


@pytest.mark.parametrize("registers", [0, 3])
def test_cls_features_are_those_of_all_tokens(registers: int) -> None:
    model = VisionTransformer(
        img_size=28,
        patch_size=7,
        embed_dim=32,
        depth=3,
        num_heads=2,
        num_register_tokens=registers,
        layerscale=0.5,
    )
    images, rows = torch.randn(3, 3, 28, 28), []
    model.blocks[-1].mlp.register_forward_hook(lambda _, args, out: rows.append(args[0].shape))
    with inference(model):
        features = pooled_features(model, images, "cls")
        torch.testing.assert_close(features, model(images))
    assert rows[0] == (3, 32)  # the others' tokens are not computed
