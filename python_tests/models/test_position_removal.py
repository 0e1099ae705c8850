from __future__ import annotations

import copy

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.hub import load_model, save_backbone
from franca_fast.models import (
    ProjectedBackbone,
    RemovePositions,
    VisionTransformer,
    build_backbone,
)
from franca_fast.rasa import PositionProjector

IMAGES = torch.randn(2, 3, 28, 42)


@pytest.fixture
def model() -> VisionTransformer:
    config = {"depth": 2, "patch_size": 7, "img_size": 28, "num_register_tokens": 3}
    return build_backbone("vit_nano", **config).eval()


@pytest.fixture
def projector() -> PositionProjector:
    return PositionProjector(torch.randn(3, 2, 128))


def test_new_removal_is_the_identity():
    features = torch.randn(2, 8)
    assert torch.equal(RemovePositions(2, 8)(features), features)


def test_matrix_is_the_whole_map():
    removal, tokens = RemovePositions(2, 8), torch.randn(5, 8)
    torch.nn.init.normal_(removal.read)
    torch.nn.init.normal_(removal.write)
    torch.testing.assert_close(tokens @ removal.matrix().T, removal(tokens), rtol=0, atol=1e-5)


def test_only_normalised_patch_tokens_change(model, projector):
    before = model.forward_features(IMAGES)
    after = projector.attach(model).forward_features(IMAGES)
    for name in ("x_norm_clstoken", "x_norm_regtokens", "x_prenorm"):
        assert torch.equal(after[name], before[name])
    expected = projector.apply(before["x_norm_patchtokens"])
    assert torch.equal(after["x_norm_patchtokens"], expected)
    assert (expected - before["x_norm_patchtokens"]).abs().max() > 1e-2


def test_every_batch_of_a_list_is_cleaned(model, projector):
    sizes = [IMAGES, torch.randn(3, 3, 14, 14)]
    together = projector.attach(model).forward_features(sizes)
    for images, tokens in zip(sizes, together, strict=True):
        expected = projector.apply(model.forward_features(images)["x_norm_patchtokens"])
        torch.testing.assert_close(tokens["x_norm_patchtokens"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reshape", [False, True])
@pytest.mark.parametrize("cls", [False, True])
def test_last_block_is_cleaned_among_intermediate_layers(model, projector, reshape, cls):
    clean = projector.attach(model)
    before = model.get_intermediate_layers(IMAGES, 2, reshape, cls)
    after = clean.get_intermediate_layers(IMAGES, 2, reshape, cls)
    patches = [[output[0] if cls else output for output in outputs] for outputs in (before, after)]
    assert torch.equal(patches[0][0], patches[1][0])
    expected = clean.forward_features(IMAGES)["x_norm_patchtokens"]
    last = patches[1][1].flatten(2).transpose(1, 2) if reshape else patches[1][1]
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-6)
    if cls:
        assert torch.equal(after[1][1], before[1][1])


@pytest.mark.parametrize(("n", "norm"), [(1, False), ([0], True)])
def test_other_layers_are_as_they_were(model, projector, n, norm):
    before = model.get_intermediate_layers(IMAGES, n, norm=norm)
    after = projector.attach(model).get_intermediate_layers(IMAGES, n, norm=norm)
    assert torch.equal(after[0], before[0])


def test_model_itself_stays_and_shares_its_weights(model, projector):
    before = copy.deepcopy(model.state_dict())
    clean = projector.attach(model)
    assert isinstance(clean, ProjectedBackbone) and not clean.training
    assert clean.blocks is model.blocks and clean.pos_embed is model.pos_embed
    assert model.state_dict().keys() == before.keys()
    assert "rasa_directions" not in model.config


@pytest.mark.parametrize("compatible", [False, True])
def test_saved_model_is_loaded_with_its_projector(model, tmp_path, compatible):
    weights = torch.randn(3, 2, 128)
    clean = PositionProjector(weights, compatible=compatible).attach(model)
    save_backbone(clean, tmp_path / "clean")
    again = load_model(tmp_path / "clean")
    assert isinstance(again, ProjectedBackbone)
    for name, tokens in clean.forward_features(IMAGES).items():
        if tokens is not None:
            assert torch.equal(again.forward_features(IMAGES)[name], tokens)


def test_file_that_lost_its_projector_is_refused(model, projector, tmp_path):
    save_backbone(projector.attach(model), tmp_path / "clean")
    architecture = tmp_path / "clean.json"
    save_backbone(model, tmp_path / "raw")
    (tmp_path / "raw.json").write_text(architecture.read_text())
    with pytest.raises(InputError, match=r"rasa\.read"):
        load_model(tmp_path / "raw")


def test_positions_are_removed_once(model, projector):
    with pytest.raises(InputError, match="already"):
        projector.attach(projector.attach(model))


def test_projector_of_another_width_is_refused(model):
    with pytest.raises(InputError, match=r"width 64.*128"):
        PositionProjector(torch.randn(1, 2, 64)).attach(model)


def test_pictures_and_exports_of_pytorch_work(model, projector):
    clean = projector.attach(model)
    exported = torch.export.export(clean, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), clean(IMAGES), rtol=0, atol=1e-5)
