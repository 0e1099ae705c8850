from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from franca_fast.errors import InputError
from franca_fast.models import VisionTransformer, build_backbone
from franca_fast.rasa.image_crops import ImageCrops
from franca_fast.rasa.patch_tokens import CachedFeatures, StreamedFeatures, open_features


@pytest.fixture
def model() -> VisionTransformer:
    return build_backbone("vit_nano", depth=1, patch_size=7, img_size=28).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(9):
        pixels = torch.randint(0, 255, (30, 40, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    return tmp_path


def open_both(model, folder):
    """Features in memory, and those that do not fit."""
    size = 9 * 16 * 128 * 4 / 1e9
    return (
        open_features(model, ImageCrops(folder, 28), cache_gb=gb, encode_batch=4)
        for gb in (size, size * 0.99)
    )


def test_budget_decides_between_memory_and_streaming(model, folder):
    cached, streamed = open_both(model, folder)
    assert isinstance(cached, CachedFeatures) and isinstance(streamed, StreamedFeatures)
    for features in (cached, streamed):
        assert (features.n_images, features.grid, features.width) == (9, (4, 4), 128)


def test_streamed_features_equal_those_in_memory(model, folder):
    order = [8, 5, 0, 3, 3, 7, 1]
    cached, streamed = (list(f.batches(order, 3)) for f in open_both(model, folder))
    assert [len(batch) for batch in cached] == [2, 3, 1]
    for a, b in zip(cached, streamed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_tokens_are_those_of_the_model(model, folder):
    crops = ImageCrops(folder, 28)
    features, _ = open_both(model, folder)
    _, images = next(crops.batches([4], 1))
    expected = model.forward_features(images)["x_norm_patchtokens"].detach()
    torch.testing.assert_close(next(features.batches([4], 1)), expected, rtol=0, atol=1e-5)


class Broken(torch.nn.Module):
    """Gives NaN for some patch."""

    patch_size = 7

    def forward_features(self, images):
        tokens = torch.zeros(len(images), 16, 8)
        tokens[-1, 3, 2] = float("nan")
        return {"x_norm_patchtokens": tokens}


def test_tokens_that_are_not_finite_are_refused(folder):
    with pytest.raises(InputError, match="not all finite"):
        open_features(Broken(), ImageCrops(folder, 28), cache_gb=1, encode_batch=4)
    with pytest.raises(InputError, match="not all finite"):
        CachedFeatures(torch.full((1, 2, 2, 4), float("inf")))


def test_encoder_without_patch_tokens_is_refused(folder):
    with pytest.raises(InputError, match="no patch tokens"):
        open_features(torch.nn.Flatten(), ImageCrops(folder, 28), cache_gb=1, encode_batch=4)


def test_folder_without_a_readable_image_is_refused(model, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="not an image"):
        open_features(model, ImageCrops(tmp_path, 28), cache_gb=1, encode_batch=4)


def test_wrong_shape_is_refused():
    with pytest.raises(InputError, match=r"\[n, rows, columns, d\]"):
        CachedFeatures(torch.randn(3, 4, 8))


def _features_on_the_gpu(folder: Path) -> None:
    with torch.device("cuda"):
        model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28).eval()
    for features in open_both(model, folder):
        batches = list(features.batches(range(9), 5))
        assert [tuple(batch.shape) for batch in batches] == [(5, 16, 128), (3, 16, 128)]
        assert all(batch.device.type == "cuda" for batch in batches)


def test_features_are_given_on_the_gpu_of_the_encoder(
    fake_gpu: Callable[..., Any], folder: Path
) -> None:
    # The first image alone, then three batches; once into memory and once not.
    assert fake_gpu(_features_on_the_gpu, folder) == {
        "rasa/patch_tokens.py: tokens_of": 4 + 4,
        "rasa/patch_tokens.py: check_finite": 4 + 4,
        "rasa/patch_tokens.py: open_features": 3,
        "rasa/patch_tokens.py: batches": 2,
    }
