from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.errors import InputError
from franca_fast.evaluation import Embeddings, embed
from franca_fast.evaluation.encoders import POOLINGS
from franca_fast.models import VisionTransformer
from python_tests.data.deep_files import png_file


def test_names_labels_and_features_of_a_folder(model: VisionTransformer, images: Path) -> None:
    result = embed(model, images)
    assert result.names == ["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "dog/e.png"]
    assert result.labels.tolist() == [0, 0, 1, 1, 1]
    assert result.features.shape == (5, 32)
    assert result.features.dtype == torch.float32
    assert not result.features.requires_grad
    assert result.skipped == {}


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (2, 3), (64, 1)])
def test_batches_and_threads_change_nothing(
    model: VisionTransformer, images: Path, batch_size: int, num_workers: int
) -> None:
    result = embed(model, images, batch_size=batch_size, num_workers=num_workers)
    expected = embed(model, images)
    assert result.names == expected.names
    torch.testing.assert_close(result.features, expected.features)


def test_output_file_holds_the_result(
    model: VisionTransformer, images: Path, tmp_path: Path
) -> None:
    result = embed(model, images, output=tmp_path / "e.npz")
    loaded = Embeddings.load(tmp_path / "e.npz")
    assert loaded.names == result.names
    assert torch.equal(loaded.features, result.features)


def test_bad_files_are_left_out_and_counted(model: VisionTransformer, images: Path) -> None:
    whole = (images / "cat/a.png").read_bytes()
    (images / "cat/b.png").write_bytes(whole[: len(whole) // 2])
    (images / "dog/d.png").write_text("no image")
    result = embed(model, images)
    assert result.names == ["cat/a.png", "dog/c.png", "dog/e.png"]
    assert result.labels.tolist() == [0, 1, 1]
    assert sum(result.skipped.values()) == 2


def test_only_bad_files_is_an_error(model: VisionTransformer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"no readable image in .* 1 skipped"):
        embed(model, tmp_path)


def test_images_without_classes_have_no_labels(
    model: VisionTransformer, images: Path, tmp_path: Path
) -> None:
    result = embed(model, [images / "cat/a.png", images / "dog/c.png"])
    assert len(result) == 2
    assert result.labels is None


def test_bundled_shards(model: VisionTransformer) -> None:
    result = embed(model, "FashionMNIST:split=TEST")
    assert len(result) == 1000
    assert set(result.labels.tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"img_size": 30}, "multiple of the patch size 7, the nearest are 28 and 35"),
        ({"pooling": "clss"}, "did you mean 'cls'"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"output": "features.csv"}, "suffix"),
    ],
)
def test_wrong_arguments_are_named(
    model: VisionTransformer, images: Path, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        embed(model, images, **options)


def _embed_on_the_gpu(images: Path) -> None:
    with torch.device("cuda"):
        model = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)
    for pooling, width in zip(POOLINGS, (32, 32, 64), strict=True):
        features = embed(model, images, batch_size=3, pooling=pooling).features
        assert (features.device.type, features.shape) == ("cpu", (5, width))


def test_features_come_from_a_gpu(fake_gpu: Callable[..., Any], images: Path) -> None:
    waits = fake_gpu(_embed_on_the_gpu, images)
    # Twice for each of two batches: images go there, and features come back.
    assert waits == {"evaluation/features.py: embed": len(POOLINGS) * 2 * 2}


def test_names_of_classes_and_the_account_of_images_are_in_the_result(
    model: VisionTransformer, images: Path, tmp_path: Path
) -> None:
    (images / "dog" / "._c.png").write_bytes((images / "dog" / "c.png").read_bytes())
    (images / "dog" / "d.png").write_text("no image")
    result = embed(model, images, output=tmp_path / "e.npz")
    loaded = Embeddings.load(tmp_path / "e.npz")
    assert loaded.class_names == result.class_names == ["cat", "dog"]
    assert loaded.facts == result.facts and loaded.facts["levels"] == "full"
    assert loaded.account.adds_up
    assert (loaded.account.found, loaded.account.used) == (6, 4)
    assert dict(loaded.account.left_out) == {"hidden file": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused(images: Path, value: float) -> None:
    def encoder(batch: torch.Tensor) -> torch.Tensor:
        features = batch.mean((2, 3))
        features[-1, 1] = value
        return features

    with pytest.raises(InputError, match=r"features: not finite for 1 of 2 images, 'cat/b.png'"):
        embed(encoder, images, img_size=28, batch_size=2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_memory_cannot_hold_is_skipped(
    model: VisionTransformer, images: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize, calls = Image.Image.resize, []

    def fail(image: Image.Image, *args: Any, **options: Any) -> Image.Image:
        calls.append(image)
        if len(calls) == 1:
            raise MemoryError
        return resize(image, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", fail)
    result = embed(model, images, num_workers=num_workers)
    assert len(result) == 4 and result.skipped == {"too large for memory": 1}


def test_the_cap_on_pixels_and_the_levels_are_settings(
    model: VisionTransformer, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png_file(np.arange(0, 4096, 64, np.uint16).reshape(8, 8)))
    with pytest.raises(InputError, match=r"no readable image .*: 1 skipped: 1 too many pixels"):
        embed(model, tmp_path, max_image_pixels=63)
    dark, scaled = (embed(model, tmp_path, levels=levels) for levels in ("full", "0:4095"))
    assert not torch.equal(dark.features, scaled.features)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_features_computed_in_bf16_are_float32_and_say_so(
    model: VisionTransformer, images: Path, pooling: str
) -> None:
    exact = embed(model, images, pooling=pooling)
    result = embed(model, images, pooling=pooling, precision="bf16")
    assert (exact.facts["precision"], result.facts["precision"]) == ("fp32", "bf16")
    assert result.features.dtype == torch.float32
    error = (result.features - exact.features).norm() / exact.features.norm()
    assert 0 < error < 0.02  # roundings of 2^-9, of which there are a dozen


def test_images_are_prepared_while_the_network_is_at_work(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize, prepared = Image.Image.resize, threading.Semaphore(0)

    def counted(image: Image.Image, *args: Any, **options: Any) -> Image.Image:
        result = resize(image, *args, **options)
        prepared.release()
        return result

    def encoder(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) == 2 and not waited:  # the first of 2, 2 and 1: all may be there by now
            waited.extend(prepared.acquire(timeout=60) for _ in range(2 * 5))
        return batch.mean((2, 3))

    waited: list[bool] = []
    monkeypatch.setattr(Image.Image, "resize", counted)
    embed(encoder, images, img_size=28, batch_size=2, num_workers=2)
    assert len(waited) == 10 and all(waited)
