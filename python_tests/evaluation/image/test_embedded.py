from __future__ import annotations

from pathlib import Path

import pytest
import torch

from franca_fast.data import pack_shards
from franca_fast.errors import InputError
from franca_fast.evaluation import Embeddings, embed
from franca_fast.evaluation.image import embedded
from franca_fast.evaluation.image.embedded import described, embed_roles, protocol_size
from franca_fast.evaluation.protocol import Reading
from franca_fast.models import VisionTransformer


def test_the_features_are_those_of_embed(model: VisionTransformer, images: Path) -> None:
    parts = embed_roles(model, {"train": [images], "test": [images]}, None, 32, Reading(2, 1))
    expected = embed(model, images, img_size=28, resize=32)
    assert parts["train"].names == expected.names
    assert torch.allclose(parts["test"].features, expected.features, atol=1e-5)
    assert not torch.equal(embed(model, images).features, expected.features)


def test_sizes() -> None:
    small = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)
    large = VisionTransformer(img_size=518, patch_size=14, embed_dim=32, depth=1, num_heads=2)
    assert protocol_size(small, None) == 28 and protocol_size(small, 56) == 56
    assert protocol_size(large, None) == 224
    with pytest.raises(InputError, match="img_size: 30"):
        protocol_size(small, 30)


def test_224_pixels_are_cut_from_256(images: Path) -> None:
    model = VisionTransformer(img_size=518, patch_size=14, embed_dim=32, depth=1, num_heads=2)
    parts = embed_roles(model, {"train": [images]}, None, None, Reading())
    assert (parts["train"].facts["img_size"], parts["train"].facts["resize"]) == (224, 256)


def test_what_a_result_says(model: VisionTransformer, images: Path) -> None:
    (images / "dog" / "broken.png").write_bytes(b"no image")
    facts = described(embed(model, images))
    assert (facts["images"], facts["classes"], facts["class_names"]) == (5, 2, ["cat", "dog"])
    assert facts["account"]["found"] == 6 and facts["account"]["used"] == 5


def test_shards_are_kept_by_their_files(
    model: VisionTransformer, images: Path, tmp_path: Path
) -> None:
    pack_shards(images, tmp_path / "shards")
    reading = Reading(features_cache=tmp_path / "cache")
    embed_roles(model, {"train": [tmp_path / "shards"]}, None, None, reading)
    embed_roles(model, {"test": [tmp_path / "shards"]}, None, None, reading)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    embed_roles(model, {"test": [images]}, None, None, reading)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_other_classes_of_the_same_files_are_kept_apart(
    model: VisionTransformer, images: Path, tmp_path: Path
) -> None:
    above = tmp_path / "above"
    above.mkdir()
    images.rename(above / "images")
    reading = Reading(features_cache=tmp_path / "cache")
    parts = [
        embed_roles(model, {"test": [folder]}, None, None, reading)["test"]
        for folder in (above, above / "images")
    ]
    assert [part.class_names for part in parts] == [["images"], ["cat", "dog"]]


def test_a_damaged_file_is_computed_again(
    model: VisionTransformer, images: Path, tmp_path: Path
) -> None:
    reading = Reading(features_cache=tmp_path / "cache")
    first = embed_roles(model, {"test": [images]}, None, None, reading)["test"]
    (file,) = reading.features_cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    again = embed_roles(model, {"test": [images]}, None, None, reading)["test"]
    assert torch.equal(first.features, again.features)
    assert Embeddings.load(file).names == first.names


def test_two_processes_may_compute_the_same(
    model: VisionTransformer, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(features_cache=tmp_path / "cache")

    def slower(*given: object, **options: object) -> Embeddings:
        monkeypatch.undo()
        embed_roles(model, {"test": [images]}, None, None, reading)
        return embed(*given, **options)

    monkeypatch.setattr(embedded, "embed", slower)
    assert len(embed_roles(model, {"test": [images]}, None, None, reading)["test"]) == 5


def test_a_cache_that_cannot_be_written_is_refused_before_the_work(
    model: VisionTransformer,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, *, overwrite: bool) -> None:
        raise InputError("output: full")

    monkeypatch.setattr(embedded, "check_output", refuse)
    monkeypatch.setattr(embedded, "embed", None)
    with pytest.raises(InputError, match="output: full"):
        embed_roles(model, {"a": [images]}, None, None, Reading(features_cache=tmp_path / "c"))


def test_what_may_change_unseen_is_not_kept(model: VisionTransformer, tmp_path: Path) -> None:
    reading = Reading(features_cache=tmp_path)
    with pytest.raises(InputError, match=r"features_cache: with .https.*accepted: files"):
        embed_roles(model, {"train": ["https://host.invalid/a.tar"]}, None, None, reading)
