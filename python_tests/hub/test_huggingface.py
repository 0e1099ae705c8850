"""The Hugging Face layout, compared through transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.hub import export_huggingface, load_model
from franca_fast.models import VisionTransformer
from franca_fast.rasa import PositionProjector

SMALL = {"img_size": 518, "embed_dim": 32, "depth": 2, "num_heads": 4}
SIZES = [(518, 518), (224, 224), (140, 224)]
TOLERANCE = 1e-4


def build(**options: Any) -> VisionTransformer:
    """A backbone whose features depend on everything in it."""
    model = VisionTransformer(**SMALL | options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def without_positions(**options: Any) -> VisionTransformer:
    """The same, with six directions removed from its patch tokens."""
    model = build(**options)
    return PositionProjector(torch.randn(3, 2, model.embed_dim)).attach(model)


def ours(model: VisionTransformer, images: Tensor) -> Tensor:
    with torch.no_grad():
        out = model.forward_features(images)
    tokens = (out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"])
    return torch.cat(tokens, dim=1)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads a folder with transformers; gives the last hidden state as a function of images."""
    import transformers

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    def load(folder: Path, code: bool = False):
        model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=code).eval()

        def run(images: Tensor) -> Tensor:
            with torch.no_grad():
                return model(images).last_hidden_state

        return run

    return load


def worst(theirs: Any, model: VisionTransformer, size: tuple[int, int]) -> float:
    images = torch.randn(1, model.config["in_chans"], *size)
    return (theirs(images) - ours(model, images)).abs().max().item()


def test_registers_of_dinov2_are_equal_at_every_size(tmp_path: Path, theirs) -> None:
    options = {"interpolate_antialias": True, "interpolate_offset": 0.0, "ffn_layer": "mlp"}
    model = build(num_register_tokens=4, **options)
    folder = export_huggingface(model, tmp_path / "hf")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    loaded = theirs(folder)
    assert all(worst(loaded, model, size) < TOLERANCE for size in SIZES)


def test_franca_is_equal_at_its_own_size_and_with_the_code_at_every_size(
    tmp_path: Path, theirs
) -> None:
    model = build()
    folder = export_huggingface(model, tmp_path / "hf")
    plain, exact = theirs(folder), theirs(folder, code=True)
    assert worst(plain, model, (518, 518)) < TOLERANCE
    assert all(worst(exact, model, size) < TOLERANCE for size in SIZES)
    # What is left without the code is the interpolation alone: ours to a target size equals it.
    assert worst(plain, model, (140, 224)) > TOLERANCE
    model.interpolate_offset = 0.0
    assert worst(plain, model, (140, 224)) < TOLERANCE


def test_position_embedding_stored_for_another_size(tmp_path: Path, theirs) -> None:
    model = build()
    loaded = theirs(export_huggingface(model, tmp_path / "hf", img_size=224))
    assert worst(loaded, model, (224, 224)) < TOLERANCE


def test_removal_of_positions_is_never_lost(tmp_path: Path, theirs) -> None:
    model = without_positions(num_register_tokens=2)
    folder = export_huggingface(model, tmp_path / "hf")
    loaded = theirs(folder, code=True)
    assert all(worst(loaded, model, size) < TOLERANCE for size in SIZES[1:])
    with pytest.raises(ValueError, match="trust_remote_code"):
        theirs(folder)
    with pytest.raises(InputError, match="of type 'franca_with_registers'"):
        load_model(folder)


def test_what_the_layout_has_and_the_architecture_lacks(tmp_path: Path, theirs) -> None:
    options = {"layerscale": None, "qkv_bias": False, "proj_bias": False, "ffn_bias": False}
    model = build(img_size=28, patch_size=7, in_chans=1, mlp_ratio=2.0, **options)
    folder = export_huggingface(model, tmp_path / "hf")
    assert worst(theirs(folder), model, (28, 28)) < TOLERANCE
    back = load_model(folder)
    images = torch.randn(1, 1, 28, 42)
    assert torch.allclose(ours(back, images), ours(model, images), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"ffn_layer": "mlp", "num_register_tokens": 4}])
def test_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    model = build(**options)
    back = load_model(export_huggingface(model, tmp_path / "hf"))
    assert back.config == model.config | {"layerscale": back.config["layerscale"]}
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[k]) for k, t in back.state_dict().items())


@pytest.mark.parametrize("registers", [0, 4])
def test_folder_of_transformers_itself(tmp_path: Path, theirs, registers: int) -> None:
    import transformers

    name = "Dinov2WithRegisters" if registers else "Dinov2"
    options = {"num_register_tokens": registers} if registers else {"use_swiglu_ffn": True}
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=70,
        patch_size=14,
        **options,
    )
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path / "hf")
    loaded = theirs(tmp_path / "hf")
    model = load_model(tmp_path / "hf")
    assert all(worst(loaded, model, size) < TOLERANCE for size in SIZES[1:])


def test_image_processor_does_what_our_evaluation_does(tmp_path: Path) -> None:
    import transformers
    from PIL import Image

    from franca_fast.data import eval_transform

    folder = export_huggingface(build(img_size=28), tmp_path / "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    for width, height in ((90, 60), (110, 55), (55, 110), (28, 28), (31, 200), (399, 57), (3, 9)):
        image = Image.effect_noise((width, height), 90).convert("RGB")
        pixels = torch.as_tensor(processor(image)["pixel_values"][0])
        assert torch.allclose(pixels, eval_transform(28)(image), atol=0.05)  # two levels


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mlp_ratio: 2\.5"):
        export_huggingface(build(img_size=28, mlp_ratio=2.5), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").touch()
    with pytest.raises(InputError, match="in use"):
        export_huggingface(build(img_size=28), tmp_path / "hf")


@pytest.mark.parametrize("content", ["no json", "[]", '{"model_type": "vit"}'])
def test_other_folders_are_refused(tmp_path: Path, content: str) -> None:
    folder = export_huggingface(build(img_size=28), tmp_path / "hf")
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"no JSON|accepted: dinov2"):
        load_model(folder)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    folder = export_huggingface(build(img_size=28), tmp_path / "hf")
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    (folder / "modeling_franca.py").write_text("raise SystemExit('ran')")
    assert load_model(folder).embed_dim == 32
