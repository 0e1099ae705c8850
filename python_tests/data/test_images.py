from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from franca_fast.data import SkipCounter, open_images
from franca_fast.data.pixels.levels import NARROW
from franca_fast.errors import InputError
from python_tests.data.deep_files import png_file
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


def test_odd_images_are_counted_by_remark(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_file(np.full((4, 4), 9, np.uint16)))
    (tmp_path / "b.png").write_bytes(png(0))
    images = open_images(tmp_path)
    assert [len(list(images)) for _ in range(2)] == [2, 2]
    assert images.account.remarks == {NARROW: 2} and images.skipped == {}
    [(_, image, _)] = open_images(tmp_path / "a.png", levels="0:9")
    assert image.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("name", ["a.heic", "a.nef", "a.psd"])
def test_formats_that_are_not_read_are_counted_in_folders_and_lists(
    tmp_path: Path, name: str
) -> None:
    write_folder(tmp_path, ["x"], 1)
    (tmp_path / "x" / name).write_bytes(b"8BPS")
    for source in (tmp_path, [tmp_path / "x" / "0.png", tmp_path / "x" / name]):
        images = open_images(source)
        assert len(list(images)) == 1
        assert images.skipped == {"format that is not read": 1}


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


def test_an_image_that_memory_cannot_hold_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, ["x"], 2)
    load = Image.Image.load

    def fail(image: Image.Image) -> object:
        if not failed:
            failed.append(image)
            raise MemoryError
        return load(image)

    failed: list[Image.Image] = []
    monkeypatch.setattr(PngImageFile, "load", fail)
    images = open_images(tmp_path)
    assert len(list(images)) == 1 and images.skipped == {"too large for memory": 1}
