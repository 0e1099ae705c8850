from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from franca_fast.data import open_images, pack_shards
from franca_fast.data import packing as packing_module
from franca_fast.data.pixels.levels import NARROW
from franca_fast.errors import InputError
from python_tests.data.deep_files import png_file
from python_tests.data.files import encoded, memory_taken, picture, png, write_folder, write_shards


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 8 images."""
    return write_folder(tmp_path / "photos", ["a", "b", "c"], 8)


def contents(folder: Path) -> dict[str, tuple[bytes, int | None]]:
    return {n: (image.tobytes(), label) for n, image, label in open_images(folder)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_is_packed_once_as_it_is(photos: Path, tmp_path: Path) -> None:
    packed = pack_shards(photos, tmp_path / "out", max_count=7)
    assert packed.shards == [f"shard-{i:06d}.tar" for i in range(4)]
    assert (packed.images, packed.kept, dict(packed.skipped)) == (24, 0, {})
    assert contents(tmp_path / "out") == contents(photos)
    assert json.loads((tmp_path / "out" / "sizes.json").read_text()) == {
        "shard-000000.tar": 7,
        "shard-000001.tar": 7,
        "shard-000002.tar": 7,
        "shard-000003.tar": 3,
    }
    assert open_images(tmp_path / "out").class_names == ["a", "b", "c"]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        member = next(member for member in tar if member.name.endswith(".png"))
        file = tar.extractfile(member)
        assert file is not None and file.read() == (photos / member.name).read_bytes()


def test_webdataset_reads_what_was_packed(photos: Path, tmp_path: Path) -> None:
    pack_shards(photos, tmp_path / "out", max_count=10)
    pattern = str(tmp_path / "out" / "shard-{000000..000002}.tar")
    dataset = (
        webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("png", "cls")
    )
    found = sorted((image.tobytes(), label) for image, label in dataset)
    expected = contents(photos).values()
    assert found == sorted((pixels, label) for pixels, label in expected)


def test_the_seed_decides_the_order_and_every_byte(photos: Path, tmp_path: Path) -> None:
    one, again, other, plain = (tmp_path / name for name in ("1", "2", "3", "4"))
    pack_shards(photos, one, num_workers=1)
    pack_shards(photos, again, num_workers=3)
    pack_shards(photos, other, seed=1)
    pack_shards(photos, plain, seed=None)
    assert files_of(one) == files_of(again)
    orders = [list(contents(folder)) for folder in (one, other, plain)]
    assert orders[2] == sorted(orders[2]) != orders[0] != orders[1]
    assert len({label for _, label in list(contents(one).values())[:8]}) > 1


def test_a_shard_is_no_larger_than_asked(photos: Path, tmp_path: Path) -> None:
    packed = pack_shards(photos, tmp_path / "out", max_size=9000)
    # tarfile fills the last record of 10 KiB up
    assert len(packed.shards) > 3 and max(map(len, files_of(tmp_path / "out").values())) <= 10240
    packed = pack_shards(photos, tmp_path / "each", max_size=1)
    assert len(packed.shards) == 24  # never empty


def test_large_images_become_smaller(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wide.png").write_bytes(encoded(picture(0, (400, 100))))
    (tmp_path / "in" / "small.png").write_bytes(png(1))
    turned = Image.Exif()
    turned[0x0112] = 6
    photo = encoded(picture(2, (300, 200)), "JPEG", exif=turned)
    (tmp_path / "in" / "turned.jpeg").write_bytes(photo)
    pack_shards(tmp_path / "in", tmp_path / "out", max_side=100)
    images = {name: image for name, image, _ in open_images(tmp_path / "out")}
    assert {name: image.size for name, image in images.items()} == {
        "wide.jpg": (100, 25),
        "small.png": (20, 16),
        "turned.jpg": (67, 100),
    }
    assert images["small.png"].tobytes() == picture(1, (20, 16)).tobytes()


def test_names_are_keys_without_dots_and_without_doubles(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("x.1.png", "x_1.png", "../photos/gr\u00fc\u00dfe \u4f60.PNG", "x.1.JPEG"):
        (folder / "k.d").mkdir(parents=True, exist_ok=True)
        (folder / "k.d" / Path(name).name).write_bytes(png(0))
    os.symlink(folder, folder / "k.d" / "loop")
    pack_shards(folder, tmp_path / "out", seed=None)
    assert list(contents(tmp_path / "out")) == [
        "k_d/gr\u00fc\u00dfe \u4f60.png",
        "k_d/x_1.jpg",
        "k_d/x_1_2.png",
        "k_d/x_1_3.png",
    ]


def test_names_that_are_no_unicode_survive(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/\xff\xfe.png")).write_bytes(png(0))
    pack_shards(tmp_path / "photos", tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 1


def test_bad_images_are_left_out_and_counted(photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "0.png").write_text("text")
    (photos / "b" / "0.png").write_bytes(b"")
    packed = pack_shards(photos, tmp_path / "out", max_count=5)
    assert packed.images == 22
    assert dict(packed.skipped) == {"not an image": 1, "empty file": 1}


def test_shards_can_be_packed_again(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, 3, 5)
    pack_shards(pattern, tmp_path / "out", max_count=4)
    assert contents(tmp_path / "out") == {
        name: (image.tobytes(), label) for name, image, label in open_images(pattern)
    }


def test_a_list_of_files_is_packed(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.glob("*/*.png"))[:5]
    assert pack_shards(files, tmp_path / "out").images == 5


def test_the_same_call_finishes_what_was_stopped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pack_shards(photos, tmp_path / "expected", max_count=4)

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_shards(photos, out, max_count=4, num_workers=2, progress=stop)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert 2 <= len(finished) < 6 and not list(out.glob(".*"))
    (out / ".shard-000005-abcdefgh.tar").write_bytes(b"left by a killed process")
    packed = pack_shards(photos, out, max_count=4)
    assert packed.kept == len(finished) and packed.images == 24
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert files_of(out) == files_of(tmp_path / "expected")


def test_killed_at_any_time_it_is_finished_by_the_same_call(photos: Path, tmp_path: Path) -> None:
    pack_shards(photos, tmp_path / "expected", max_count=2)
    code = (
        "import os, sys; from franca_fast.data import pack_shards\n"
        "def stop(done, total): done == 4 and os.kill(os.getpid(), 9)\n"
        "pack_shards(sys.argv[1], sys.argv[2], max_count=2, progress=stop)"
    )
    command = [sys.executable, "-c", code, str(photos), str(tmp_path / "out")]
    assert subprocess.run(command).returncode == -9
    assert len(list((tmp_path / "out").glob("shard-*.tar"))) >= 4
    pack_shards(photos, tmp_path / "out", max_count=2)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


def test_a_full_disk_leaves_whole_shards_only(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = packing_module._add
    written = list[str]()

    def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
        written.append(name)
        if len(written) > 20:
            raise OSError(28, "No space left on device")
        added(tar, name, data)

    monkeypatch.setattr(packing_module, "_add", add)
    with pytest.raises(OSError, match="No space"):
        pack_shards(photos, tmp_path / "out", max_count=4, num_workers=1)
    monkeypatch.undo()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"packing.json", "shard-000000.tar", "shard-000001.tar"}
    assert pack_shards(photos, tmp_path / "out", max_count=4).kept == 2


def test_two_processes_do_not_pack_into_one_folder(photos: Path, tmp_path: Path) -> None:
    pack_shards(photos, tmp_path / "out", max_count=4)
    (tmp_path / "out" / "shard-000000.tar").unlink()

    def second(*_: int) -> None:
        with pytest.raises(InputError, match="another process is packing"):
            pack_shards(photos, tmp_path / "out", max_count=4)

    assert pack_shards(photos, tmp_path / "out", max_count=4, progress=second).images == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_count": 1.5}, "max_count: 1.5"),
        ({"num_workers": 0}, "num_workers: 0"),
        ({"shuffle": True}, "setting of packing: shuffle; accepted: pattern"),
    ],
)
def test_wrong_settings_are_refused(
    photos: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pack_shards(photos, tmp_path / "out", **settings)
    assert not list(tmp_path.glob("out/*.tar"))


NAMES = {
    "latin-1": [b"caf\xe9", b"caf\xe8", b"na\xefve"],
    "gbk": ["\u4f60".encode("gbk"), "\u597d".encode("gbk")],
    "shift-jis": ["\u8868".encode("shift_jis"), "\u793a".encode("shift_jis")],
    "mixed": [b"caf\xe9", "caf\u00e9".encode(), b"a\nb", b"\\xe9"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_of_images_and_classes_keep_their_bytes(tmp_path: Path, names: list[bytes]) -> None:
    folder = os.fsencode(tmp_path / "photos")
    for i, name in enumerate(names):
        os.makedirs(os.path.join(folder, name))
        Path(os.fsdecode(os.path.join(folder, name, name + b".png"))).write_bytes(png(i))
    packed = pack_shards(tmp_path / "photos", tmp_path / "shards")
    assert packed.images == len(names) and packed.account.adds_up
    read = {name: label for name, _, label in open_images(tmp_path / "shards").labelled()}
    clean = sorted(os.fsdecode(name) for name in names)
    assert sorted(map(str, read.values())) == clean
    assert sorted(read) == [f"{name}/{name}.png" for name in clean]


def test_the_names_of_classes_are_in_each_shard(photos: Path, tmp_path: Path) -> None:
    packed = pack_shards(photos, tmp_path / "shards", max_count=10)
    for name in ("packing.json", "sizes.json"):
        (tmp_path / "shards" / name).unlink()
    labels = set()
    for shard in packed.shards:
        (tmp_path / shard).write_bytes((tmp_path / "shards" / shard).read_bytes())
        labels |= {label for _, _, label in open_images(tmp_path / shard).labelled()}
        with tarfile.open(tmp_path / shard) as tar:  # as others read it
            assert all(member.isfile() for member in tar)
    assert labels == set(packed.class_names) == {"a", "b", "c"}


def test_sources_with_other_classes_are_joined_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", ["boot", "dress", "shirt"], 2)
    write_folder(tmp_path / "two", ["bag", "shirt"], 2)
    packed = pack_shards([tmp_path / "one", tmp_path / "two"], tmp_path / "shards", seed=None)
    assert packed.class_names == ["bag", "boot", "dress", "shirt"]
    read = [label for _, _, label in open_images(tmp_path / "shards")]
    assert read == [1, 1, 2, 2, 3, 3, 0, 0, 3, 3]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_nothing_is_left_when_all_is_skipped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(content)
    packed = pack_shards(tmp_path / "photos", tmp_path / "shards", max_count=2)
    assert packed.images == 0 and packed.shards == [] and packed.account.adds_up
    assert packed.skipped.total() == 3
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("output", ["out", "a/out", "a/b/c/out", "mine/out", "mine"])
def test_folders_are_left_as_they_were_when_all_is_skipped(tmp_path: Path, output: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(b"no image")
    pack_shards(tmp_path / "photos", tmp_path / output)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["0.png", "mine", "photos"]


def test_what_an_earlier_call_skipped_is_still_accounted_for(photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "0.png").write_bytes(b"no image")
    pack_shards(photos, tmp_path / "out", max_count=4)
    again = pack_shards(photos, tmp_path / "out", max_count=4)
    assert again.account.adds_up
    assert dict(again.skipped) == {"skipped by an earlier call": 1}


def test_a_folder_in_use_is_left_alone(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lies in the folder that is packed"):
        pack_shards(photos, photos / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="is in use"):
        pack_shards(photos, tmp_path / "used")
    with pytest.raises(InputError, match="is a file"):
        pack_shards(photos, tmp_path / "used" / "note.txt")
    pack_shards(photos, tmp_path / "out", max_count=20)
    before = files_of(tmp_path / "out")
    with pytest.raises(InputError, match="other images or settings"):
        pack_shards(photos, tmp_path / "out", max_count=21)
    (photos / "a" / "9.png").write_bytes(png(9))
    with pytest.raises(InputError, match="other images or settings"):
        pack_shards(photos, tmp_path / "out", max_count=20)
    assert files_of(tmp_path / "out") == before


def test_images_above_the_usual_limit_are_packed_where_they_are_made_smaller(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (9_000, 8_000)).save(tmp_path / "in" / "large.jpg")
    packed = pack_shards(tmp_path / "in", tmp_path / "out", max_side=100)
    assert packed.images == 1 and not packed.skipped
    [(_, image, _)] = open_images(tmp_path / "out")
    assert image.size == (100, 89)
    limits = {"max_side": 100, "max_image_pixels": 64_000_000}
    kept = {"max_side": None}
    for i, settings in enumerate((limits, kept)):
        packed = pack_shards(tmp_path / "in", tmp_path / f"other{i}", **settings)
        assert packed.skipped == {"too many pixels": 1}


def test_levels_are_mapped_where_images_are_made_smaller(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    levels = np.linspace(0, 4095, 1600).astype(np.uint16).reshape(40, 40)
    (tmp_path / "in" / "a.png").write_bytes(png_file(levels))
    found = {}
    for name in ("full", "0:4095"):
        packed = pack_shards(tmp_path / "in", tmp_path / name, max_side=20, levels=name)
        [(_, image, _)] = open_images(tmp_path / name)
        found[name] = (packed.account.remarks, image.getextrema()[0][1])
    assert found["full"] == ({NARROW: 1}, pytest.approx(16, abs=3))
    assert found["0:4095"] == ({}, pytest.approx(255, abs=9))


def test_no_shape_takes_much_memory() -> None:
    work = """
import pathlib, tempfile
from franca_fast.data import pack_shards
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "in").mkdir()
Image.new("RGB", (600, 9)).save(folder / "in" / "a.png")
for i, file in enumerate(FILES):
    (folder / "in" / f"{i}.png").write_bytes(file.getvalue())
for side in (224, 518):
    packed = pack_shards(folder / "in", folder / str(side), max_side=side)
    assert packed.images == 1 + len(FILES), packed
"""
    assert memory_taken(work) < 64
