"""Networks with timm's interface as encoders; timm itself is stood in for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.evaluation import embed
from franca_fast.evaluation.encoders import as_encoder, inference, load_encoder, pooled_features
from franca_fast.evaluation.feature_cache import weights_checksum
from franca_fast.evaluation.timm_encoders import TimmEncoder
from franca_fast.models import VisionTransformer
from python_tests.evaluation.timm_stand_in import NAME, Library, Transformer

IMAGES = torch.randn(2, 3, 21, 35)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setitem(sys.modules, "timm", library)
    return library


@pytest.mark.parametrize(("class_token", "registers"), [(True, 0), (True, 4), (False, 0)])
def test_tokens_are_those_of_forward_features(class_token: bool, registers: int) -> None:
    model = Transformer(class_token=class_token, reg_tokens=registers, dynamic_img_size=True)
    encoder = as_encoder(model.eval())
    assert isinstance(encoder, TimmEncoder)
    assert not encoder.training
    prefix = class_token + registers
    with inference(encoder):
        expected = model.forward_features(IMAGES)
        tokens = encoder.forward_features(IMAGES)
        assert torch.equal(encoder(IMAGES), tokens["x_norm_clstoken"])
    patches = expected[:, prefix:]
    assert patches.shape[1] == 3 * 5
    assert torch.equal(tokens["x_norm_patchtokens"], patches)
    assert torch.equal(tokens["x_norm_regtokens"], expected[:, int(class_token) : prefix])
    cls_token = expected[:, 0] if class_token else patches.mean(1)
    assert torch.equal(tokens["x_norm_clstoken"], cls_token)


def test_layers_are_the_blocks_outputs_in_their_order() -> None:
    model = Transformer(reg_tokens=2, dynamic_img_size=True)
    encoder = as_encoder(model.eval())
    assert isinstance(encoder, TimmEncoder)
    outputs: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda block, args, output: outputs.append(output))
        for block in model.blocks
    ]
    with inference(encoder):
        model.forward_features(IMAGES)
        for handle in handles:
            handle.remove()
        first, last = encoder.get_intermediate_layers(IMAGES, [2, 0], norm=False)
        pairs = encoder.get_intermediate_layers(IMAGES, 2, True, True)
        final = encoder.forward_features(IMAGES)
    assert torch.equal(first, outputs[0][:, 3:]) and torch.equal(last, outputs[2][:, 3:])
    for (patches, cls_token), output in zip(pairs, outputs[1:], strict=True):
        normed = model.norm(output)
        assert torch.equal(patches.flatten(2).transpose(1, 2), normed[:, 3:])
        assert torch.equal(cls_token, normed[:, 0])
    assert torch.equal(pairs[1][1], final["x_norm_clstoken"])
    assert not any(block._forward_hooks for block in model.blocks)


def test_keys_are_the_middle_third_of_qkv() -> None:
    model = Transformer(reg_tokens=2, dynamic_img_size=True)
    encoder, attention = as_encoder(model.eval()), model.blocks[-1].attn
    projected: list[Tensor] = []
    handle = attention.qkv.register_forward_hook(lambda *args: projected.append(args[2]))
    with inference(encoder):
        model.forward_features(IMAGES)
        handle.remove()
        keys = encoder.last_keys(IMAGES)
    assert keys.shape == (2, 3, 5, 32)
    assert torch.equal(keys.flatten(1, 2), projected[0][:, 3:, 32:64])


def test_a_network_that_hides_its_keys_says_so() -> None:
    model = Transformer()
    del model.blocks[-1].attn.k_norm
    model.blocks[-1].attn.forward = lambda x: x
    with pytest.raises(InputError, match="does not show its keys"):
        as_encoder(model).last_keys(torch.zeros(1, 3, 28, 28))


def test_weights_names_and_sizes_reach_timm(timm: Library) -> None:
    encoder = load_encoder(f"timm:{NAME}.lvd142m")
    assert encoder.name == f"timm:{NAME}.lvd142m" and not encoder.training
    assert timm.calls == [
        (f"{NAME}.lvd142m", {"dynamic_img_size": True, "num_classes": 0, "pretrained": True})
    ]
    assert load_encoder(f"timm:{NAME}", "random", 14).config == {"img_size": 14}
    assert timm.calls[-1][1]["pretrained"] is False


def test_weights_of_a_file_are_loaded_without_their_classifier(
    timm: Library, tmp_path: Path
) -> None:
    model = Transformer(num_classes=7, dynamic_img_size=True).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    encoder = load_encoder(f"timm:{NAME}", tmp_path / "mine.pth")
    with inference(encoder):
        tokens = encoder.forward_features(IMAGES)["x_norm_patchtokens"]
        assert torch.equal(tokens, model.forward_features(IMAGES)[:, 1:])
    state = model.state_dict()
    del state["norm.weight"]
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"mine\.pth' cannot be loaded: .* Missing key.*norm\.wei"):
        load_encoder(f"timm:{NAME}", tmp_path / "mine.pth")
    torch.save(model.state_dict() | {"norm.bias": torch.full((32,), torch.inf)}, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b\.pth': NaN or infinite values .*norm\.bias \(32 of"):
        load_encoder(f"timm:{NAME}", tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"none\.pth': no such file"):
        load_encoder(f"timm:{NAME}", tmp_path / "none.pth")


def test_weights_that_cannot_be_had_are_one_line(timm: Library) -> None:
    timm.error = RuntimeError("no connection\nto the hub")
    with pytest.raises(InputError, match=f"'timm:{NAME}' cannot be loaded: no connection to the"):
        load_encoder(f"timm:{NAME}")
    load_encoder(f"timm:{NAME}", "random")


def test_an_architecture_of_one_size_names_it(timm: Library) -> None:
    timm.fixed = True
    encoder = load_encoder(f"timm:{NAME}", "random")
    assert encoder.forward_features(torch.zeros(1, 3, 28, 28))["x_norm_patchtokens"].shape[1] == 16
    with pytest.raises(InputError, match=f"21 x 35 pixels, for 'timm:{NAME}'; accepted: 28 x 28"):
        encoder(IMAGES)
    encoder = load_encoder(f"timm:{NAME}", "random", img_size=14)
    assert encoder.forward_features(torch.zeros(1, 3, 14, 14))["x_norm_patchtokens"].shape[1] == 4


def test_names_and_networks_that_do_not_fit_are_refused(timm: Library) -> None:
    with pytest.raises(InputError, match=f"unknown 'timm:{NAME[:-1]}' .did you mean 'timm:{NAME}'"):
        load_encoder(f"timm:{NAME[:-1]}")
    with pytest.raises(InputError, match="'timm:resnet18', without forward_features, num_prefix"):
        load_encoder("timm:resnet18", "random")
    model = Transformer()
    model.patch_embed.patch_size = (7, 14)
    with pytest.raises(InputError, match=r"with patches \(7, 14\); accepted: .* square patches"):
        as_encoder(model)
    model = Transformer()
    model.num_prefix_tokens = 2  # more than it gives
    with pytest.raises(
        InputError, match=r"gave \(1, 17, 32\) for 4 x 4 patches; accepted: \(1, 18"
    ):
        as_encoder(model)(torch.zeros(1, 3, 28, 28))
    model.forward_features = lambda x: {"tokens": x}
    with pytest.raises(InputError, match="gave dict; accepted: one tensor"):
        as_encoder(model)(torch.zeros(1, 3, 28, 28))


def test_without_timm_the_command_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="needs timm, which is not installed; pip install timm"):
        load_encoder(f"timm:{NAME}")


def test_images_are_converted_to_the_networks_normalisation(timm: Library) -> None:
    timm.cfg |= {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 1.0)}
    encoder = load_encoder(f"timm:{NAME}", "random")
    pixels = torch.rand(2, 3, 28, 28)
    ours = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    theirs = (pixels - 0.5) / torch.tensor([0.5, 0.25, 1.0])[:, None, None]
    with inference(encoder):
        tokens = encoder.forward_features(ours)["x_norm_patchtokens"]
        expected = encoder.model.forward_features(theirs)[:, 1:]
    torch.testing.assert_close(tokens, expected, rtol=0, atol=2e-5)
    same = Transformer(num_classes=0, dynamic_img_size=True)
    same.load_state_dict(encoder.model.state_dict())  # another normalisation, so other features
    assert weights_checksum(TimmEncoder(same)) != weights_checksum(encoder)


def test_bf16_is_near(timm: Library) -> None:
    encoder = load_encoder(f"timm:{NAME}", "random")
    with inference(encoder):
        exact = pooled_features(encoder, IMAGES, "cls_patch_mean")
    with inference(encoder, "bf16"):
        near = pooled_features(encoder, IMAGES, "cls_patch_mean")
    assert 0 < (near - exact).norm() / exact.norm() < 0.05


def test_features_are_embedded_by_name_and_the_network_keeps_its_mode(
    timm: Library, images: Path
) -> None:
    assert embed(f"timm:{NAME}", images).features.shape == (5, 32)
    model = Transformer().train()
    embed(model, images)
    assert model.training
    model.eval()
    embed(model, images)
    assert not model.training


def test_our_own_networks_and_plain_callables_are_no_networks_of_timm(
    model: VisionTransformer,
) -> None:
    identity = nn.Identity()
    assert as_encoder(model) is model and as_encoder(identity) is identity
