from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from franca_fast.data.benchmark_files import (
    benchmark_source,
    benchmark_tree,
    check_files,
    file_stamp,
    files_by_stem,
    read_list,
    rgb_image,
)
from franca_fast.errors import InputError

DEFAULTS = {"split": "val"}


def test_a_folder_and_a_named_data_set_are_the_same(tmp_path: Path) -> None:
    assert benchmark_source(tmp_path, "DAVIS", DEFAULTS) == (tmp_path, DEFAULTS)
    named = f"DAVIS:root={tmp_path}:split=train"
    assert benchmark_source(named, "DAVIS", DEFAULTS) == (tmp_path, {"split": "train"})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("DAVIS:root=/:colour=red", "option of DAVIS: colour"),
        ("DAVSI:root=/", "dataset: DAVSI"),
        ("nowhere", "DAVIS 'nowhere': no such file or folder; accepted: its folder"),
    ],
)
def test_wrong_names_are_one_line(source: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        benchmark_source(source, "DAVIS", DEFAULTS)
    assert "\n" not in str(caught.value)


def test_a_tree_is_found_below_and_what_it_lacks_is_named(tmp_path: Path) -> None:
    needed = ["JPEGImages", "ImageSets/val.txt"]
    for folder in ("A/JPEGImages", "A/ImageSets"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(InputError, match=r"without ImageSets/val\.txt; accepted: a folder with"):
        benchmark_tree(tmp_path, "DAVIS", needed, ["A"])
    (tmp_path / "A/ImageSets/val.txt").touch()
    assert benchmark_tree(tmp_path, "DAVIS", needed, ["A"]) == tmp_path / "A"
    assert benchmark_tree(tmp_path / "A", "DAVIS", needed, ["A"]) == tmp_path / "A"


def test_a_list_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "val.txt"
    with pytest.raises(InputError, match="no such file"):
        read_list(file)
    file.write_text("\n \n")
    with pytest.raises(InputError, match="empty"):
        read_list(file)
    file.write_text("b -1\r\na  1\r\n\r\n")
    assert read_list(file) == ["b", "a"]


def test_files_are_sorted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.JPG", "._a.jpg", "c.txt"):
        (tmp_path / name).touch()
    assert list(files_by_stem(tmp_path, (".jpg",))) == ["a", "b"]
    (tmp_path / "a.jpeg").touch()
    with pytest.raises(InputError, match="one file of a name"):
        files_by_stem(tmp_path, (".jpg", ".jpeg"))
    with pytest.raises(InputError, match="no folder"):
        files_by_stem(tmp_path / "b.jpg", (".jpg",))


def test_missing_files_are_counted(tmp_path: Path) -> None:
    check_files("X", [])
    with pytest.raises(InputError, match=r"5 files are missing: .* and 2 more; accepted"):
        check_files("X", [tmp_path / str(i) for i in range(5)])


def test_images_are_decoded_or_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with pytest.raises(InputError, match=r"a\.png.*No such file"):
        rgb_image(file)
    file.write_bytes(b"text")
    with pytest.raises(InputError, match=r"a\.png': not an image; accepted"):
        rgb_image(file)
    Image.new("L", (20, 10), 7).save(file)
    assert (rgb_image(file).mode, rgb_image(file).size) == ("RGB", (20, 10))
    with pytest.raises(InputError, match="too many pixels"):
        rgb_image(file, {"max_image_pixels": 100})


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = file_stamp(file)
    file.write_text("three")
    assert file_stamp(file) != before
