"""Networks of transformers as encoders, compared with what transformers itself computes."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import as_encoder, inference, load_encoder, pooled_features
from franca_fast.evaluation.foreign_encoders import ForeignEncoder
from franca_fast.evaluation.huggingface_encoders import HuggingFaceEncoder, foreign_type
from franca_fast.hub import export_huggingface, load_model
from franca_fast.models import VisionTransformer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
# Type -> its configuration, its own arguments, tokens before the patches, and other size arguments.
TYPES: dict[str, tuple[str, dict[str, Any], int]] = {
    "dinov3_vit": ("DINOv3ViT", {"num_register_tokens": 4}, 5),
    "vit": ("ViT", {}, 1),
    "vit_msn": ("ViTMSN", {}, 1),
    "deit": ("DeiT", {}, 2),
    "ijepa": ("IJepa", {}, 0),
}
IMAGES = torch.randn(2, 3, 24, 40)  # neither square nor of the size of the positions


def build(kind: str = "dinov3_vit") -> nn.Module:
    """A network of transformers whose tokens depend on everything in it."""
    name, options, _ = TYPES[kind]
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of DINOv3."""
    build().save_pretrained(tmp_path / "dinov3")
    return tmp_path / "dinov3"


def write_processor(folder: Path, **content: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def own(model: nn.Module, images: Tensor) -> Tensor:
    options = {} if model.config.model_type == "dinov3_vit" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        return model(images, **options).last_hidden_state


def test_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model, prefix = build(kind), TYPES[kind][2]
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert isinstance(encoder, HuggingFaceEncoder) and not encoder.training
    assert (encoder.patch_size, encoder.embed_dim, encoder.depth) == (8, 32, 3)
    assert encoder.config == {"img_size": 32}
    for images in (IMAGES, torch.randn(1, 3, 32, 32)):
        expected = own(model, images)
        with inference(encoder):
            tokens = encoder.forward_features(images)
        patches = expected[:, prefix:]
        assert torch.equal(tokens["x_norm_patchtokens"], patches)
        assert torch.equal(tokens["x_norm_regtokens"], expected[:, min(1, prefix) : prefix])
        cls_token = expected[:, 0] if prefix else patches.mean(1)
        assert torch.equal(tokens["x_norm_clstoken"], cls_token)


def test_last_layer_is_the_output_and_earlier_ones_are_the_hidden_states(kind: str) -> None:
    model, prefix = build(kind), TYPES[kind][2]
    encoder = as_encoder(model)
    assert isinstance(encoder, ForeignEncoder)
    with inference(encoder):
        final = encoder.forward_features(IMAGES)
        ((patches, cls_token),) = encoder.get_intermediate_layers(IMAGES, 1, True, True)
        raw = encoder.get_intermediate_layers(IMAGES, [0, 1], norm=False)
        options = encoder._options
        states = model(IMAGES, output_hidden_states=True, **options).hidden_states
    assert patches.shape == (2, 32, 3, 5)
    assert torch.equal(patches.flatten(2).transpose(1, 2), final["x_norm_patchtokens"])
    assert torch.equal(cls_token, final["x_norm_clstoken"])
    for given, expected in zip(raw, states[1:3], strict=True):
        assert torch.equal(given, expected[:, prefix:])


def test_keys_are_those_of_the_last_block(kind: str) -> None:
    model, prefix = build(kind), TYPES[kind][2]
    state = model.state_dict()
    name = next(k for k in state if ".2." in k and k.endswith(("k_proj.weight", "key.weight")))
    normed: list[Tensor] = []
    module = model.get_submodule(name.removesuffix(".weight"))
    handle = module.register_forward_pre_hook(lambda module, args: normed.append(args[0]))
    with torch.no_grad():
        own(model, IMAGES)
        handle.remove()
        expected = normed[0] @ state[name].T
        if (bias := name.replace("weight", "bias")) in state:
            expected = expected + state[bias]
        keys = as_encoder(model).last_keys(IMAGES)
    assert keys.shape == (2, 3, 5, 32)
    torch.testing.assert_close(keys.flatten(1, 2), expected[:, prefix:], rtol=0, atol=1e-5)
    assert not module._forward_hooks


def test_images_are_converted_to_the_networks_own_normalisation(folder: Path) -> None:
    pixels, model = torch.rand(2, 3, 24, 40), transformers.AutoModel.from_pretrained(folder)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.5, 1.0)))
    images = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.5, 1.0]}
    for processor, theirs in (
        (settings, (pixels - mean) / std),
        (settings | {"rescale_factor": 1 / 127.5}, (2 * pixels - mean) / std),
        (settings | {"do_rescale": False}, (255 * pixels - mean) / std),
        ({"do_normalize": False, **settings}, pixels),
    ):
        write_processor(folder, **processor)
        encoder = load_encoder(folder)
        expected = own(model.eval(), theirs)[:, 5:]
        with inference(encoder):
            tokens = encoder.forward_features(images)["x_norm_patchtokens"]
        torch.testing.assert_close(tokens, expected, rtol=0, atol=2e-4)
    write_processor(folder, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    assert load_encoder(folder).scale is None


def test_halves_of_a_file_are_computed_in_fp32_and_in_bf16_on_request(tmp_path: Path) -> None:
    build().to(torch.bfloat16).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    with inference(encoder):
        exact = pooled_features(encoder, IMAGES, "cls_patch_mean")
    with inference(encoder, "bf16"):
        near = pooled_features(encoder, IMAGES, "cls_patch_mean")
    assert near.dtype == torch.float32
    assert 0 < (near - exact).norm() / exact.norm() < 0.05


def test_other_sizes_than_multiples_of_the_patch_are_refused(folder: Path) -> None:
    encoder = load_encoder(folder)
    with pytest.raises(InputError, match="28 x 32 pixels; accepted: multiples of the patch size 8"):
        encoder(torch.randn(1, 3, 28, 32))
    with pytest.raises(InputError, match=r"images: .*accepted: .batch, 3, height, width"):
        encoder(torch.randn(1, 1, 32, 32))
    with pytest.raises(InputError, match=r"n: 4; accepted: 1..3"):
        encoder.get_intermediate_layers(IMAGES, 4)
    with pytest.raises(InputError, match="img_size: 30; accepted"):
        load_encoder(folder, img_size=30)


def test_dinov2_goes_through_our_own_loader(tmp_path: Path) -> None:
    model = VisionTransformer(img_size=28, embed_dim=32, depth=2, num_heads=2, patch_size=7)
    export_huggingface(model, tmp_path / "hf")
    assert foreign_type(tmp_path / "hf") is None
    assert isinstance(load_encoder(tmp_path / "hf"), VisionTransformer)
    assert foreign_type(tmp_path) is None and foreign_type(tmp_path / "none") is None


def test_raw_networks_of_dinov2_are_taken_too() -> None:
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = transformers.Dinov2WithRegistersModel(config).eval()
    encoder = as_encoder(model)
    with inference(encoder):
        patches = encoder.forward_features(IMAGES)["x_norm_patchtokens"]
        assert torch.equal(patches, model(IMAGES).last_hidden_state[:, 5:])


def test_other_types_are_refused_and_the_accepted_ones_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    with pytest.raises(InputError, match=r"of type 'vit_mae'; accepted: dinov3_vit, dinov2, "):
        load_encoder(tmp_path)
    bert = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=12))
    with pytest.raises(InputError, match="'BertModel' of type 'bert'; accepted: dinov3_vit"):
        as_encoder(bert)


def test_weights_that_do_not_fit_are_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    norm = next(key for key in state if key.endswith("norm.weight"))

    def write(changed: dict[str, Tensor]) -> None:
        save_file(changed, file, {"format": "pt"})

    write({key: tensor for key, tensor in state.items() if key != norm})
    with pytest.raises(InputError, match=r"do not fit: missing norm\.weight"):
        load_encoder(folder)
    write(state | {norm: torch.full_like(state[norm], torch.nan)})
    with pytest.raises(InputError, match=r"NaN or infinite values in 1 tensors: norm\.weight"):
        load_encoder(folder)
    write(state | {norm: torch.ones(5)})
    with pytest.raises(InputError, match="cannot be loaded by transformers: "):
        load_encoder(folder)
    write(state | {"classifier.weight": torch.ones(5)})
    with caplog.at_level(logging.WARNING, "franca_fast"):
        load_encoder(folder)
    assert "1 tensors are no part of the encoder and were left out: classifier.weight" in (
        caplog.text
    )
    file.write_bytes(b"no file")
    with pytest.raises(InputError, match="cannot be loaded by transformers: "):
        load_encoder(folder)
    (folder / "preprocessor_config.json").write_text("{")
    write(state)
    with pytest.raises(InputError, match=r"preprocessor_config\.json': no JSON"):
        load_encoder(folder)


def test_transformers_says_nothing_and_is_left_as_it_was(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = transformers.utils.logging
    before = said.is_progress_bar_enabled(), said.get_verbosity()
    capfd.readouterr()
    load_encoder(folder)
    assert capfd.readouterr() == ("", "")
    assert (said.is_progress_bar_enabled(), said.get_verbosity()) == before


def test_without_transformers_the_command_that_brings_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers.*; pip install transformers brings"):
        load_encoder(folder)


def test_options_that_mean_nothing_for_a_folder_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="weights: 'random', for a folder; accepted: None"):
        load_encoder(folder, "random")
    with pytest.raises(InputError, match=r"checkpoint: newest, for .*; accepted: with a run"):
        load_encoder(folder, checkpoint="newest")
    with pytest.raises(InputError, match=r"network: 'student', for .*; accepted: with a run"):
        load_encoder(folder, network="student")


def test_load_model_names_the_verbs_that_take_such_a_folder(folder: Path) -> None:
    with pytest.raises(InputError, match=r"of type 'dinov3_vit'; accepted: dinov2 or .*load_enc"):
        load_model(folder)
    with pytest.raises(InputError, match=r"'timm:vit_x'; accepted: .*franca_fast.*load_encoder"):
        load_model("timm:vit_x")
