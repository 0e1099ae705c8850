from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from franca_fast.data import check_shards, shard_statistics
from franca_fast.data.pixels.levels import NARROW
from franca_fast.errors import InputError
from python_tests.data.deep_files import png_file
from python_tests.data.files import encoded, picture, png, tar_bytes, write_folder


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """A good shard, one with two bad images, one that is cut, and one that is missing."""
    members = [(f"{i}.png", png(i)) for i in range(6)]
    (tmp_path / "s-0.tar").write_bytes(tar_bytes(members))
    members[1], members[4] = ("1.png", b"text"), ("4.png", png(4)[:60])
    (tmp_path / "s-1.tar").write_bytes(tar_bytes(members))
    whole = tar_bytes([(f"{i}.ppm", encoded(picture(i), "PPM")) for i in range(6)])
    (tmp_path / "s-2.tar").write_bytes(whole[: 3 * 1536 + 1000])
    return str(tmp_path / "s-{0..3}.tar")


def test_a_check_names_all_that_is_bad(damaged: str) -> None:
    found = check_shards(damaged, num_workers=2)
    assert (found.shards, found.images) == (4, 6 + 4 + 3)
    assert [(Path(bad.location).name, bad.reason) for bad in found.bad] == [
        ("s-1.tar:1.png", "not an image"),
        ("s-1.tar:4.png", "damaged image"),
        ("s-2.tar", "damaged shard"),
        ("s-3.tar", "missing shard"),
    ]
    assert found.skipped.total() == 4


def test_a_check_of_good_images_finds_nothing_bad(tmp_path: Path) -> None:
    progress = list[int]()
    found = check_shards(write_folder(tmp_path, ["a"], 5), progress=progress.append)
    assert (found.images, found.bad, progress) == (5, [], [5])
    assert check_shards(tmp_path, max_image_pixels=10).bad[0].reason == "too many pixels"


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cat", "dog"], 3)
    (tmp_path / "dog" / "x.jpg").write_bytes(encoded(picture(0, (64, 40)), "JPEG"))
    (tmp_path / "dog" / "bad.jpg").write_bytes(b"")
    found = shard_statistics(tmp_path)
    assert (found.shards, found.images) == (1, 7)
    assert sorted(found.widths.tolist()) == [20] * 6 + [64]
    assert sorted(found.heights.tolist()) == [16] * 6 + [40]
    assert dict(found.formats) == {"PNG": 6, "JPEG": 1}
    assert dict(found.classes) == {0: 3, 1: 4} and found.class_names == ["cat", "dog"]
    assert found.size == sum(p.stat().st_size for p in tmp_path.glob("*/*"))
    assert dict(found.skipped) == {"empty file": 1}
    assert found.mean is None and found.std is None


def test_the_colours_are_those_of_the_pixels(tmp_path: Path) -> None:
    colour = np.full((8, 8, 3), (255, 0, 51), np.uint8)
    colour[:4] = 0
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(colour)))
    (tmp_path / "b.png").write_bytes(encoded(Image.new("L", (9, 9), 51)))
    found = shard_statistics(tmp_path, colours=True)
    pixels = np.concatenate([colour.reshape(-1, 3), np.full((64, 3), 51, np.uint8)]) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(0))
    np.testing.assert_allclose(found.std, pixels.std(0))


@pytest.mark.parametrize("function", [check_shards, shard_statistics])
def test_nothing_there_is_an_error(tmp_path: Path, function: object) -> None:
    with pytest.raises(InputError, match="it is empty"):
        function(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match="num_workers: 0"):
        function(write_folder(tmp_path, ["a"], 1), num_workers=0)  # type: ignore[operator]


LEFT_OUT = {
    "dots": (["22.01.png", "22.02.png", "22.03.png"], 1, 2),
    "sides": (["x.left.png", "x.right.png", "y.png"], 2, 1),
    "repeated": (["a.png", "a.png", "b.png"], 2, 1),
    "hidden": (["._a.png", "a.png"], 1, 1),
    "nothing": (["a.png", "b.png"], 2, 0),
}


@pytest.mark.parametrize(("names", "used", "left_out"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_a_rule_leaves_out_is_named_and_adds_up(
    tmp_path: Path, names: list[str], used: int, left_out: int
) -> None:
    members = [(name, png(i)) for i, name in enumerate(names)]
    (tmp_path / "s.tar").write_bytes(tar_bytes(members))
    checked, statistics = check_shards(tmp_path), shard_statistics(tmp_path)
    for account in (checked.account, statistics.account):
        assert account.adds_up
        assert (account.found, account.used) == (len(names), used)
        assert account.left_out.total() == left_out
    assert len(checked.left_out) == left_out
    assert all(one.location.startswith(f"{tmp_path}/s.tar:") for one in checked.left_out)


def test_labels_are_counted_by_name_and_what_is_no_label_is_named(tmp_path: Path) -> None:
    members = [("a.png", png(0)), ("a.cls", b"dog"), ("b.png", png(1)), ("b.cls", b"[1, 2]")]
    (tmp_path / "s.tar").write_bytes(tar_bytes([*members, ("c.cls", b"3")]))
    write_folder(tmp_path / "photos", ["cat", "dog"], 2)
    found = shard_statistics([tmp_path / "s.tar", tmp_path / "photos"])
    assert found.class_names == ["cat", "dog"] and dict(found.classes) == {0: 2, 1: 3}
    remarks = {
        "label that is not understood": 1,
        "label without an image beside it": 1,
    }
    assert dict(found.account.remarks) == remarks
    checked = check_shards([tmp_path / "s.tar", tmp_path / "photos"])
    assert dict(checked.account.remarks) == remarks
    assert [remark.location for remark in checked.remarks] == [
        f"{tmp_path}/s.tar:b.png",
        f"{tmp_path}/s.tar:c.cls",
    ]


def test_odd_images_are_good_and_remarked_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_file(np.full((4, 4), 9, np.uint16)))
    (tmp_path / "b.png").write_bytes(png(0))
    checked = check_shards(tmp_path)
    assert (checked.images, checked.bad, checked.account.remarks) == (2, [], {NARROW: 1})
    assert check_shards(tmp_path, levels="minmax").remarks == []
    assert shard_statistics(tmp_path, colours=True).account.remarks == {NARROW: 1}
    assert shard_statistics(tmp_path).account.remarks == {}  # only headers are read
