from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from franca_fast.data import index_cache, shards
from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.shards import TarShard
from franca_fast.data.tar_index import TarNotes
from python_tests.data.files import tar_bytes

MEMBERS = [(f"k{i}/{i}.{kind}", b"%d" % i * 9) for i in range(5) for kind in ("jpg", "cls")]


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settled shard, and an empty cache that takes small ones."""
    monkeypatch.setenv("FRANCA_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "SMALLEST_SHARD", 0)
    (tmp_path / "s.tar").write_bytes(tar_bytes(MEMBERS))
    os.utime(tmp_path / "s.tar", (1e9, 1e9))
    return tmp_path / "s.tar"


def indexed(path: Path, label: int | None = None) -> list[object]:
    index = TarShard(str(path), label).index()
    return [(index.ref(i), index.label(i)) for i in range(len(index))]


def only_from_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the shard was read")

    monkeypatch.setattr(shards, "tar_samples", refuse)


def stored(path: Path) -> list[Path]:
    return list((path.parent / "cache").glob("indexes/*/*.index"))


def test_headers_are_read_once(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = indexed(shard)
    assert len(expected) == 5 and len(stored(shard)) == 1
    only_from_cache(monkeypatch)
    assert indexed(shard) == expected
    assert [label for _, label in indexed(shard, label=3)] == [3] * 5  # type: ignore[misc]


def test_damage_is_remembered(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard.write_bytes(shard.read_bytes()[: 4 * 2048 + 300])
    os.utime(shard, (1e9, 1e9))
    expected = TarShard(str(shard)).index().damage
    only_from_cache(monkeypatch)
    assert expected is not None and TarShard(str(shard)).index().damage == expected


def test_a_shard_that_changed_is_read_again(shard: Path) -> None:
    indexed(shard)
    other = tar_bytes([(name.replace("k", "q"), data) for name, data in MEMBERS])
    shard.write_bytes(other)
    os.utime(shard, (1e9, 1e9 + 1))
    assert TarShard(str(shard)).index().ref(0).name == "q0/0.jpg"
    assert indexed(shard) == indexed(shard)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flip", "older", "other"])
def test_a_damaged_file_is_as_good_as_none(shard: Path, damage: str) -> None:
    expected = indexed(shard)
    [file] = stored(shard)
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-9] ^= 255
    file.write_bytes(
        {
            "empty": b"",
            "text": b"hello",
            "cut": data[: len(data) // 2],
            "older": b"x" + data[1:],
            "other": index_cache._MAGIC + b"x",
        }.get(damage, bytes(data))
    )
    assert indexed(shard) == expected
    assert indexed(shard) == expected


def test_places_outside_the_shard_are_not_believed(shard: Path) -> None:
    status = os.stat(shard)
    contents = index_cache.load_contents(str(shard), status)
    assert contents is None
    places = np.array([[0, 1 << 40]], np.int64)
    forged = index_cache.TarContents(
        b"a.jpg", places, np.zeros((1, 0), np.int64), TarNotes(), "", 0
    )
    index_cache.store_contents(str(shard), status, forged)
    assert index_cache.load_contents(str(shard), status) is None


def test_nothing_is_kept_of_small_or_fresh_shards_or_when_turned_off(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(shard)
    indexed(shard)
    os.utime(shard, (1e9, 1e9))
    with monkeypatch.context() as patch:
        patch.setenv("FRANCA_FAST_INDEX_CACHE", "0")
        indexed(shard)
    with monkeypatch.context() as patch:
        patch.setattr(index_cache, "SMALLEST_SHARD", 1 << 20)
        indexed(shard)
    assert not stored(shard)


def test_a_cache_that_cannot_be_written_is_done_without(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard.parent / "file").write_text("in the way")
    monkeypatch.setenv("FRANCA_FAST_CACHE", str(shard.parent / "file" / "below"))
    assert len(indexed(shard)) == 5


def test_an_empty_shard_is_kept_as_well(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard.write_bytes(tar_bytes([("a.txt", b"1")]))
    os.utime(shard, (1e9, 1e9))
    assert indexed(shard) == []
    only_from_cache(monkeypatch)
    index: ShardIndex = TarShard(str(shard)).index()
    assert len(index) == 0 and index.damage is None
