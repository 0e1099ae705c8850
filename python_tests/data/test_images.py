from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.data import SkipCounter, eval_transform, open_images
from franca_fast.errors import InputError
from python_tests.data.files import encoded, picture, png, tar_bytes, write_folder


def test_folders_come_in_order_with_classes(tmp_path: Path) -> None:
    images = open_images(write_folder(tmp_path, ["dog", "cat"], 2))
    found = [(name, label) for name, _, label in images]
    assert found == [("cat/0.png", 0), ("cat/1.png", 0), ("dog/0.png", 1), ("dog/1.png", 1)]
    assert images.class_names == ["cat", "dog"]


def test_shards_come_in_order_with_their_labels(tmp_path: Path) -> None:
    members = [("b.png", png(1)), ("b.cls", b"7"), ("a.png", png(2)), ("a.json", b'{"label": 1}')]
    (tmp_path / "s.tar").write_bytes(tar_bytes(members))
    found = [(name, label) for name, _, label in open_images(tmp_path / "s.tar")]
    assert found == [("b.png", 7), ("a.png", 1)]


def test_images_are_rgb_and_each_iteration_starts_anew(tmp_path: Path) -> None:
    grey = picture(3, mode="L")
    (tmp_path / "a.png").write_bytes(encoded(grey))
    images = open_images(tmp_path / "a.png")
    for _ in range(2):
        [(name, image, label)] = images
        assert (name, label) == (str(tmp_path / "a.png"), None)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(grey.convert("RGB")))


def test_several_sources_one_after_another(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", ["x"], 1)
    (tmp_path / "s.tar").write_bytes(tar_bytes([("t.png", png(0))]))
    names = [name for name, _, _ in open_images([tmp_path / "s.tar", tmp_path / "folder"])]
    assert names == ["t.png", "x/0.png"]


def test_bad_files_and_shards_are_skipped_and_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a"], 2)
    (tmp_path / "a" / "0.png").write_bytes(png(0)[:50])
    (tmp_path / "a" / "b.jpg").write_text("text")
    skipped = SkipCounter()
    assert [name for name, _, _ in open_images(tmp_path / "a", skipped=skipped)] == ["1.png"]
    assert dict(skipped) == {"damaged image": 1, "not an image": 1}

    data = tar_bytes([(f"{i}.png", encoded(picture(i, (90, 90)), "BMP")) for i in range(4)])
    (tmp_path / "s.tar").write_bytes(data[: len(data) // 2])
    images = open_images(tmp_path / "s.tar")
    assert len(list(images)) == 2
    assert dict(images.skipped) == {"damaged shard": 1}


def test_what_is_skipped_again_is_counted_and_not_named_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, ["a"], 2)
    (tmp_path / "a" / "bad.png").write_text("text")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # two evaluations, of two iterations each
            images = open_images(tmp_path)
            assert [len(list(images)) for _ in range(2)] == [2, 2]
            assert dict(images.skipped) == {"not an image": 2}
    assert caplog.text.count("bad.png") == 1


def test_nothing_to_open_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_images(tmp_path / "gone.png")
    with pytest.raises(InputError, match="no images"):
        open_images(tmp_path)


@pytest.mark.parametrize("size", [(64, 64), (100, 64), (64, 100), (20, 31), (500, 3)])
def test_eval_transform_takes_the_centre(size: tuple[int, int]) -> None:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    result = eval_transform(32)(image)
    assert result.shape == (3, 32, 32) and result.dtype == torch.float32
    levels = result[0, 16] * 0.229 + 0.485
    assert abs(float(levels.mean()) - 0.5) < 0.06


def test_eval_transform_normalises_and_resizes_as_the_usual_protocol() -> None:
    image = picture(0, (40, 30))
    result = eval_transform(24, resize=27)(image)
    resized = image.resize((36, 27), Image.Resampling.BICUBIC).crop((6, 2, 30, 26))
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(result, (pixels - mean[:, None, None]) / std[:, None, None])


@pytest.mark.parametrize(("size", "resize"), [(0, None), (224, 200)])
def test_eval_transform_refuses_impossible_sizes(size: int, resize: int | None) -> None:
    with pytest.raises(InputError, match="img_size"):
        eval_transform(size, resize)


def test_classes_are_joined_by_name_over_sources(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", ["boot", "dress"], 1)
    write_folder(tmp_path / "two", ["bag", "dress"], 1)
    images = open_images([tmp_path / "one", tmp_path / "two"])
    assert images.class_names == ["bag", "boot", "dress"]
    assert [label for _, _, label in images] == [1, 2, 0, 2]


def test_names_in_labels_join_those_of_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", ["cat", "dog"], 1)
    members = [("a.png", png(0)), ("a.cls", b"dog"), ("b.png", png(1)), ("b.cls", b"owl")]
    (tmp_path / "s.tar").write_bytes(tar_bytes(members))
    images = open_images([tmp_path / "s.tar", tmp_path / "one"])
    assert [images.class_names[label or 0] for _, _, label in images] == [
        "dog",
        "owl",
        "cat",
        "dog",
    ]


def test_every_image_is_accounted_for(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", ["a"], 3)
    (tmp_path / "one" / "a" / "1.png").write_text("text")
    (tmp_path / "one" / "a" / "._2.png").write_bytes(png(2))
    members = [("x.png", png(0)), ("x.cls", b"[1]"), ("x.depth.png", png(1))]
    (tmp_path / "s.tar").write_bytes(tar_bytes(members))
    images = open_images([tmp_path / "one", tmp_path / "s.tar"])
    assert len(list(images)) == 3
    assert images.account.adds_up and images.account.found == 6
    assert images.account.as_dict() == {
        "found": 6,
        "used": 3,
        "skipped": {"not an image": 1},
        "left_out": {"hidden file": 1, "another image of the same sample": 1},
        "remarks": {"label that is not understood": 1},
    }
