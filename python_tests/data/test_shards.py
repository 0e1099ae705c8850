from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from franca_fast.data import shards
from franca_fast.data.decoding import BadImage
from franca_fast.data.samples import read_sample
from franca_fast.data.shards import ImageFiles, TarShard
from python_tests.data.files import png, tar_bytes

MEMBERS = [("a.jpg", b"first"), ("a.cls", b"4"), ("b.jpg", b"second"), ("b.json", b'{"label": 2}')]


def contents(shard: shards.Shard) -> list[tuple[str, bytes, int | None]]:
    index = shard.index()
    refs = [index.ref(i) for i in range(len(index))]
    return [(ref.name, read_sample(ref), index.label(i)) for i, ref in enumerate(refs)]


EXPECTED = [("a.jpg", b"first", 4), ("b.jpg", b"second", 2)]


def test_a_tar_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes(MEMBERS))
    shard = TarShard(str(path))
    assert contents(shard) == EXPECTED
    ref = shard.index().ref(1)
    assert ref.data is None and ref.location == f"{path}:b.jpg"


@pytest.mark.parametrize("padding", [b"", bytes(512)])
def test_a_compressed_tar_is_held_in_memory(tmp_path: Path, padding: bytes) -> None:
    path = tmp_path / "s.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(MEMBERS)) + padding)
    shard = TarShard(str(path))
    assert contents(shard) == EXPECTED
    assert shard.index().data == [b"first", b"second"]  # and no more than that


def test_image_files_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"pixels")
    shard = ImageFiles("x", str(tmp_path), ["x.png", "gone.png"], [5, -1])
    index = shard.index()
    assert (index.ref(0).name, read_sample(index.ref(0)), index.label(0)) == ("x.png", b"pixels", 5)
    assert index.label(1) is None
    with pytest.raises(BadImage, match="unreadable file"):
        read_sample(index.ref(1))


def test_files_are_read_where_python_takes_names_for_ascii(tmp_path: Path) -> None:
    names = sorted(["é".encode(), b"\xe9", b"\x93\xfa\x96{", "猫".encode()], key=os.fsdecode)
    for name in names:
        file = tmp_path / os.fsdecode(name) / os.fsdecode(name + b".png")
        file.parent.mkdir()
        file.write_bytes(png(1))
    code = (
        "import sys; from franca_fast.data import open_images; "
        "print(*[ascii(name) for name, image, _ in open_images(sys.argv[1]) if image])"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = subprocess.check_output(
        [sys.executable, "-c", code, tmp_path], env=os.environ | ascii_only, text=True
    )
    expected = {ascii(os.fsdecode(name + b"/" + name + b".png")) for name in names}
    assert set(shown.split()) == expected


def test_a_class_for_the_whole_tar(tmp_path: Path) -> None:
    path = tmp_path / "n01.tar"
    path.write_bytes(tar_bytes(MEMBERS))
    assert [label for _, _, label in contents(TarShard(str(path), label=7))] == [7, 7]


def test_missing_and_unreadable_shards_are_told_in_the_index(tmp_path: Path) -> None:
    text = tmp_path / "text.tar"
    text.write_bytes(b"not a tar" * 100)
    for path, reason in [
        (tmp_path / "gone.tar", "missing"),
        (tmp_path, "unreadable"),
        (text, "unreadable"),
    ]:
        index = TarShard(str(path)).index()
        assert len(index) == 0
        assert index.damage and index.damage.reason == f"{reason} shard"
        assert index.damage.location == str(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_shard_gives_its_beginning(tmp_path: Path, compressed: bool) -> None:
    data = tar_bytes([(f"{i}.jpg", bytes(range(256)) * 20) for i in range(20)])
    data = gzip.compress(data, 0) if compressed else data
    path = tmp_path / "s.tar"
    path.write_bytes(data[: len(data) // 2])
    index = TarShard(str(path)).index()
    assert 7 <= len(index) <= 10
    assert index.damage and index.damage.reason == "damaged shard"
    assert read_sample(index.ref(6)) == bytes(range(256)) * 20


def test_a_compressed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES_IN_MEMORY", 1 << 20)
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(4 << 20)))
    damage = TarShard(str(path)).index().damage
    assert damage and "more than 1 MiB" in damage.detail


def test_a_truncated_shard_counts_what_is_known_to_be_lost(tmp_path: Path) -> None:
    data = tar_bytes([(f"{i}.jpg", bytes(1000)) for i in range(20)])
    path = tmp_path / "00007.tar"
    path.write_bytes(data[: 5 * 1536 + 900])
    damage = TarShard(str(path)).index().damage
    assert damage and (damage.count, damage.of) == (1, 6)  # the one that is cut
    (tmp_path / "00007_stats.json").write_text('{"count": 25, "successes": 20}')
    damage = TarShard(str(path)).index().damage
    assert damage and (damage.count, damage.of) == (15, 20)
    assert "15 or more of its images are lost" in damage.detail
    (tmp_path / "sizes.json").write_text('{"00007.tar": 18, "gone.tar": 9}')
    damage = TarShard(str(path)).index().damage
    assert damage and damage.count == 13
    damage = TarShard(str(tmp_path / "gone.tar")).index().damage
    assert damage and (damage.reason, damage.count, damage.of) == ("missing shard", 9, 9)


@pytest.mark.parametrize("text", ["[" * 9999, '{"s.tar": "5"}', "[1]", '{"s.tar": -5}', "", "\0"])
def test_a_list_of_sizes_that_makes_no_sense_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "sizes.json").write_text(text)
    damage = TarShard(str(tmp_path / "s.tar")).index().damage
    assert damage and damage.count == 1


def test_a_flipped_bit_in_a_header_costs_its_own_image_only(tmp_path: Path) -> None:
    data = bytearray(tar_bytes([(f"{i}.jpg", b"%d" % i * 1000) for i in range(20)]))
    data[7 * 1536 + 3] ^= 1
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    assert [name for name, _, _ in contents(TarShard(str(path)))] == [
        f"{i}.jpg" for i in range(20) if i != 7
    ]
    damage = TarShard(str(path)).index().damage
    assert damage and (damage.reason, damage.count, damage.of) == ("damaged shard", 1, 20)


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.tar")
    damage = TarShard(str(tmp_path / "s.tar")).index().damage
    assert damage and "not a regular file" in damage.detail
