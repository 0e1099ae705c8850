from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.data import fashion_mnist_shards
from franca_fast.data.randomness import Purpose, permutation
from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import as_encoder
from franca_fast.hub import export_huggingface
from franca_fast.models import ProjectedEncoder, VisionTransformer, build_backbone
from franca_fast.rasa import FitSettings, PositionProjector, fit, position_report
from franca_fast.rasa.fit import crops_of
from franca_fast.rasa.patch_tokens import open_features
from python_tests.data.files import write_folder
from python_tests.evaluation.timm_stand_in import Transformer

TRAIN, TEST = fashion_mnist_shards("train")[0], "FashionMNIST:split=TEST"
SETTINGS = FitSettings(readout="covariance", epochs=10, num_workers=0)


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    torch.manual_seed(1)
    model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28).eval()
    torch.nn.init.normal_(model.pos_embed, std=0.5)
    return model


@pytest.fixture(scope="module")
def projector(model):
    return fit(model, TRAIN, SETTINGS)


@pytest.fixture(scope="module")
def report(model, projector):
    return position_report(model, TEST, projector, SETTINGS)


def test_position_is_read_before_and_not_after(report):
    assert report.chance == pytest.approx(5 / 36)
    assert report.before.ridge_r2 > 0.8 and report.before.trained_r2 > 0.5
    assert abs(report.after.ridge_r2) < 0.05 and abs(report.after.trained_r2) < 0.05


def test_errors_and_shares_belong_together(report):
    for step in report.steps:
        assert step.ridge_r2 == pytest.approx(1 - step.ridge_mse / report.chance)
    assert (report.before.energy_removed, report.before.variance_removed) == (0, 0)
    assert 0 < report.after.energy_removed < 1
    assert [step.directions for step in report.steps] == [0, 2]


def test_images_are_divided_in_two(report):
    assert (report.probe_images, report.held_out_images) == (500, 500)


def test_removing_other_directions_leaves_the_position(model):
    settings = dataclasses.replace(SETTINGS, epochs=1)
    other = position_report(model, TEST, PositionProjector(torch.randn(1, 2, 128)), settings)
    assert other.after.ridge_r2 > 0.7


def test_energy_is_that_of_the_held_out_tokens(model, projector, report):
    order = permutation(SETTINGS.seed, Purpose.SPARES, (), 1000).tolist()
    features = open_features(model, crops_of(model, TEST, SETTINGS), cache_gb=1, encode_batch=250)
    tokens = next(features.batches(order[500:], 500))
    left = projector.apply(tokens).square().sum() / tokens.square().sum()
    assert report.after.energy_removed == pytest.approx(1 - left.item(), rel=1e-4)


def test_figures_are_json(report):
    content = json.loads(json.dumps(report.as_dict()))
    assert content["grid"] == [4, 4]
    assert content["steps"][1]["ridge_mse"] == report.after.ridge_mse


def test_pictures_show_positions_before_and_even_colour_after(report):
    rows = [[np.asarray(image) for image in images] for images in report.pictures.values()]
    assert list(report.pictures) == ["image", "position", "read before", "read after"]
    assert [len(images) for images in rows] == [8] * 4
    spread = [images[-1][..., :2].std((0, 1)).min() for images in rows[1:]]
    assert spread[0] > 60 and spread[1] > 40 and spread[2] < 25


def test_picture_is_a_sheet_of_all_of_them(report, tmp_path):
    report.save_picture(tmp_path / "positions.png")
    with Image.open(tmp_path / "positions.png") as picture:
        assert picture.width > 8 * 115 and picture.height > 4 * 115


def test_figures_need_no_matplotlib(model, projector, report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    same = position_report(model, TEST, projector, SETTINGS)
    assert same == report
    with pytest.raises(InputError, match=r"franca-fast\[plots\]"):
        same.save_picture(tmp_path / "positions.png")
    assert not list(tmp_path.iterdir())


def test_projector_of_another_width_is_refused(model):
    with pytest.raises(InputError, match="width 64"):
        position_report(model, TEST, PositionProjector(torch.randn(1, 2, 64)), SETTINGS)


def test_too_few_images_are_refused(model, tmp_path):
    for i in range(20):
        Image.new("RGB", (28, 28), (i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match="at least 160"):
        position_report(model, tmp_path, PositionProjector(torch.randn(1, 2, 128)), SETTINGS)


def _report_on_the_gpu(images: Path) -> None:
    with torch.device("cuda"):
        model = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)
    projector = PositionProjector(torch.randn(1, 2, 32))
    settings = FitSettings(epochs=2, batch_size=10, encode_batch=20, num_workers=0)
    report = position_report(model.eval(), images, projector, settings)
    assert (report.probe_images, report.held_out_images) == (20, 20)
    assert report.before.trained_mse is not None and report.after.trained_mse is not None


def test_a_report_waits_for_no_step(fake_gpu: Callable[..., Any], tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", ["a", "b"], 20)
    assert fake_gpu(_report_on_the_gpu, images) == {
        # The first image, two batches of all, and those that are pictured.
        "rasa/patch_tokens.py: tokens_of": 1 + 2 + 1,
        "rasa/patch_tokens.py: check_finite": 1 + 2 + 1,
        "rasa/patch_tokens.py: open_features": 2,
        # Two for the moments of a half and in each epoch and measurement; before and after.
        "rasa/patch_tokens.py: batches": 2 * 2 + 1 + 2 * (2 * 2 + 2),
        "rasa/positions.py: __init__": 2 * (1 + 3),
        "rasa/readout.py: __init__": 2,
        "rasa/readout.py: _train": 2 * (2 + 2 + 1),
        "rasa/readout.py: error": 2 * (2 + 1),
        "rasa/report.py: position_report": 1,
    }


def _dinov3(folder: Path) -> Any:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.DINOv3ViTConfig(
        **sizes, intermediate_size=48, image_size=28, patch_size=7, num_register_tokens=2
    )
    model = transformers.DINOv3ViTModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    # Positions turn queries and keys alone, so that little of a token depends on them.
    torch.nn.init.normal_(model.embeddings.patch_embeddings.weight, std=0.01)
    model.save_pretrained(folder / "dinov3")
    return folder / "dinov3"


def _dinov2(folder: Path) -> Any:
    model = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)
    torch.nn.init.normal_(model.pos_embed, std=0.5)
    return export_huggingface(model, folder / "dinov2")


def _timm(folder: Path) -> Any:
    return Transformer(dynamic_img_size=True).eval()


class _Plain:
    """No module, only what is asked of one: 8 colours of a patch, its place, and products."""

    patch_size = 7

    def forward_features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        corners = torch.nn.functional.avg_pool2d(images, (3, 7), (7, 7))
        rows, columns = (torch.arange(side) / side for side in corners.shape[2:])
        place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        mixed = torch.cat([corners, corners**2, place + corners[:, :2]], 1)
        return {"x_norm_patchtokens": mixed.flatten(2).transpose(1, 2)}


def _plain(folder: Path) -> Any:
    return _Plain()


@pytest.mark.parametrize("build", [_dinov3, _dinov2, _timm, _plain])
def test_positions_are_removed_from_encoders_of_every_kind(build: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(80):
        colour = torch.randint(240, (1, 1, 3), generator=generator)  # what a patch shows is little
        pixels = (colour + torch.randint(16, (28, 28, 3), generator=generator)).to(torch.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{i}.png")
    model = build(tmp_path)
    settings = FitSettings(
        readout="covariance", iterations=2, epochs=1, img_size=28, num_workers=0, batch_size=16
    )
    projector = fit(model, tmp_path / "images", settings)
    report = position_report(model, tmp_path / "images", projector, settings)
    assert report.before.ridge_r2 > 0.2
    assert report.after.ridge_r2 < 0.02
    clean = projector.attach(as_encoder(model))
    assert isinstance(clean, VisionTransformer if build is _dinov2 else ProjectedEncoder)
    with pytest.raises(InputError, match="removes positions already"):
        fit(clean, tmp_path / "images", settings)
