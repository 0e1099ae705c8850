"""Architectures as the shapes of weights tell them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.hub import load_head, load_model, read_state_dict
from franca_fast.models import ARCHITECTURES, VisionTransformer
from python_tests.hub.test_load import CHECKPOINT, GOLDEN, assert_same_weights


def test_golden_checkpoint_gives_the_golden_architecture() -> None:
    model = load_model(CHECKPOINT, architecture={"num_heads": 4})
    described = json.loads((GOLDEN / "golden.json").read_text())["backbone"]
    for key in ("embed_dim", "depth", "patch_size", "img_size", "ffn_layer", "mlp_ratio"):
        assert model.config[key] == described[key], key


def test_unknown_number_of_heads_is_asked_for() -> None:
    with pytest.raises(InputError, match="num_heads"):
        load_model(CHECKPOINT)


@pytest.mark.parametrize(
    "options",
    [
        {"ffn_layer": "mlp", "mlp_ratio": 3.0},
        {"ffn_layer": "swiglu", "mlp_ratio": 2.0},
        {"num_register_tokens": 4},
        {"layerscale": None},
        {"qkv_bias": False, "proj_bias": False, "ffn_bias": False},
        {"patch_size": 7, "in_chans": 1},
    ],
)
def test_shapes_tell_the_architecture(tmp_path: Path, options: dict[str, object]) -> None:
    model = VisionTransformer(
        **{"img_size": 28, "embed_dim": 48, "depth": 1, "num_heads": 3} | options
    )
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert_same_weights(load_model(tmp_path / "w.pth", architecture={"num_heads": 3}), model)


@pytest.fixture(scope="module")
def tiny() -> VisionTransformer:
    return VisionTransformer(img_size=14, **ARCHITECTURES["vit_tiny"])


def test_weights_of_another_architecture_are_refused(
    tmp_path: Path, tiny: VisionTransformer
) -> None:
    torch.save(tiny.state_dict(), tmp_path / "w.pth")
    for name in ("vit_small", "franca_vitb14"):
        with pytest.raises(InputError, match="with embed_dim 192; accepted: vit_"):
            load_model(name, weights=tmp_path / "w.pth")


def test_head_of_narrow_slices_takes_the_backbone_width(tmp_path: Path) -> None:
    state = read_state_dict(GOLDEN / "slice_head.pth")
    narrow = {k: t for k, t in state.items() if k.split(".")[2] in "0123"}
    torch.save(narrow, tmp_path / "w.pth")
    head = load_head(tmp_path / "w.pth", "ibot_head", in_dim=64)
    assert head.nesting_dims == (4, 8, 16, 32)
    assert head.out_dims == (32, 64, 128, 256)
