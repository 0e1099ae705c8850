from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from franca_fast.data import open_source
from franca_fast.data.shards import Shard, ShardIndex, TarShard
from franca_fast.data.sources import Source
from franca_fast.data.stream import Draw, Position, SampleStream
from franca_fast.errors import InputError
from python_tests.data.files import write_shards


@pytest.fixture
def stream(tmp_path: Path) -> SampleStream:
    """Six shards of 5 samples; windows of 2 shards."""
    return SampleStream(open_source(write_shards(tmp_path, 6, 5)), seed=0, shuffle_buffer=8)


def keys(draw: Draw) -> list[int]:
    return [int(ref.name[:4]) for ref in draw.refs]


def test_every_epoch_has_every_sample_once_in_another_order(stream: SampleStream) -> None:
    epochs = [keys(stream.take(30)) for _ in range(4)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert all(one != other for one, other in pairwise(epochs))


def test_samples_are_shuffled_within_windows_of_whole_shards(stream: SampleStream) -> None:
    window = keys(stream.take(10))
    assert len({key // 5 for key in window}) == 2
    assert window[:5] != sorted(window[:5])
    assert len({key // 5 for key in window[:5]}) == 2  # both shards from the beginning


def test_any_position_continues_exactly(stream: SampleStream) -> None:
    positions, drawn = [], []
    for _ in range(40):  # batches of 4 cross windows and epochs
        positions.append(Position.from_dict(stream.position.to_dict()))
        drawn.append(stream.take(4, spares=3))
    for start in range(0, 40, 3):
        fresh = SampleStream(stream.source, seed=0, shuffle_buffer=8)
        fresh.seek(positions[start])
        for expected in drawn[start : start + 8]:
            draw = fresh.take(4, spares=3)
            assert keys(draw) == keys(expected)
            assert draw.spares == expected.spares
            assert draw.numbers.tolist() == expected.numbers.tolist()


def test_ranks_take_disjoint_parts_of_one_sequence(stream: SampleStream) -> None:
    whole = [keys(stream.take(6)) for _ in range(12)]
    for rank in range(3):
        part = SampleStream(stream.source, seed=0, shuffle_buffer=8)
        assert [keys(part.take(6, rank, 3)) for _ in range(12)] == [b[rank::3] for b in whole]


def test_the_position_holds_for_another_number_of_ranks(stream: SampleStream) -> None:
    for _ in range(7):
        stream.take(6, rank=1, world_size=2)
    position = stream.position
    assert position.drawn == 42
    expected = keys(stream.take(12, 0, 1))
    for rank in range(4):
        part = SampleStream(stream.source, seed=0, shuffle_buffer=8)
        part.seek(position)
        assert keys(part.take(12, rank, 4)) == expected[rank::4]


def test_a_batch_larger_than_the_data_repeats_it(stream: SampleStream) -> None:
    assert set(Counter(keys(stream.take(90))).values()) == {3}
    assert stream.position.epoch == 2


def test_the_seed_changes_the_order(stream: SampleStream) -> None:
    other = SampleStream(stream.source, seed=1, shuffle_buffer=8)
    assert keys(stream.take(30)) != keys(other.take(30))


def test_sources_of_one_class_per_shard_are_shuffled_whole(stream: SampleStream) -> None:
    stream.source.shuffle_whole = True
    assert len({key // 5 for key in keys(stream.take(12))}) > 4


def test_damage_is_told_once_per_epoch(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, 4, 3)
    source = open_source(pattern)
    (tmp_path / "s-2.tar").unlink()
    stream = SampleStream(source, seed=0, shuffle_buffer=1)
    draws = [stream.take(3) for _ in range(6)]
    damage = [bad for draw in draws for opened in draw.opened for bad in opened.skipped]
    assert [(bad.location, bad.reason) for bad in damage] == [
        (str(tmp_path / "s-2.tar"), "missing shard")
    ] * 2
    assert sorted(key for draw in draws[:3] for key in keys(draw)) == [0, 1, 2, 3, 4, 5, 9, 10, 11]


def test_data_that_vanished_is_an_error(tmp_path: Path) -> None:
    source = open_source(write_shards(tmp_path, 3, 2))
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"no images in .* any more"):
        SampleStream(source, seed=0).take(1)


def test_data_that_changed_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(write_shards(tmp_path, 1, 6))
    stream = SampleStream(source, seed=0)
    stream.take(2)
    write_shards(tmp_path, 1, 4)
    changed = SampleStream(source, seed=0)
    changed.seek(stream.position)
    with caplog.at_level(logging.WARNING):
        assert len(changed.take(20).refs) == 20
    assert "4 samples in place of 6" in caplog.text


@pytest.mark.parametrize(
    "state", [None, {}, {"epoch": 0}, {**Position().to_dict(), "offset": "1"}, [1, 2]]
)
def test_a_wrong_position_is_refused(state: object) -> None:
    with pytest.raises(InputError, match="position in the data"):
        Position.from_dict(state)


def test_memory_ends_a_window(stream: SampleStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("franca_fast.data.stream._WINDOW_BYTES", 1)
    assert len({key // 5 for key in keys(stream.take(5))}) == 1


def test_windows_of_the_first_epoch_begin_small_and_double(
    stream: SampleStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stream.source.shards[0].size()
    monkeypatch.setattr("franca_fast.data.stream._FIRST_BYTES", one)
    for whole in (False, True):
        stream.source.shuffle_whole = whole
        fresh = SampleStream(stream.source, seed=0, shuffle_buffer=100)
        windows = []
        while fresh.position.epoch == 0:
            fresh.take(1)
            windows.append(fresh.position.window)
        assert windows[:30] == [5] * 10 + [10] * 10 + [10] * 10  # 1, 1, 2 and the last 2 shards
        assert fresh.position.window == 30


def test_windows_that_grow_are_resumed_exactly(
    stream: SampleStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("franca_fast.data.stream._FIRST_BYTES", 1)
    positions, drawn = [], []
    for _ in range(12):
        positions.append(stream.position)
        drawn.append(keys(stream.take(4)))
    assert stream.position.epoch == 1
    for start in range(12):
        fresh = SampleStream(stream.source, seed=0, shuffle_buffer=8)
        fresh.seek(positions[start])
        assert [keys(fresh.take(4)) for _ in drawn[start:]] == drawn[start:]


class SlowShard(TarShard):
    """A shard that is indexed when the test allows it."""

    allowed: threading.Event

    def index(self) -> ShardIndex:
        assert self.allowed.wait(60)
        return super().index()


def test_the_first_samples_do_not_wait_for_all_shards(
    stream: SampleStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("franca_fast.data.stream._FIRST_BYTES", 1)
    expected = [keys(stream.take(count)) for count in (5, 5, 10, 10)]  # its four windows
    slow = list[Shard]()
    for i in range(6):
        shard = SlowShard(str(tmp_path / f"s-{i}.tar"))
        shard.allowed = threading.Event()
        slow.append(shard)
    fresh = SampleStream(Source("slow", slow), seed=0, shuffle_buffer=8)
    for draw in expected:
        for key in draw:
            slow[key // 5].allowed.set()  # type: ignore[attr-defined]
        assert keys(fresh.take(len(draw))) == draw


def test_shards_ahead_are_indexed_in_the_background(
    stream: SampleStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("franca_fast.data.stream._FIRST_BYTES", 1)
    indexed = set[str]()
    original = TarShard.index

    def index(shard: TarShard) -> ShardIndex:
        result = original(shard)
        indexed.add(shard.name)
        return result

    monkeypatch.setattr(TarShard, "index", index)
    stream.take(1)
    end = time.monotonic() + 60
    while len(indexed) < 6 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(indexed) == 6
