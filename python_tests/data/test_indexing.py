from __future__ import annotations

from pathlib import Path

import pytest

from franca_fast.data.indexing import ShardIndexes
from franca_fast.data.remote import RemoteShard
from franca_fast.data.shards import Shard, ShardIndex, TarShard
from python_tests.data.files import write_shards


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    write_shards(tmp_path, 6, 5)
    return [TarShard(str(tmp_path / f"s-{i}.tar")) for i in range(6)]


def test_indexes_come_as_asked_for(shards: list[Shard]) -> None:
    indexes = ShardIndexes(shards)
    indexes.prepare([5, 0, 3])
    for number in (3, 1, 5, 3, 0):
        assert indexes[number].ref(0).name == f"{5 * number:04d}.png"
    assert indexes[1] is indexes[1]


def test_few_are_kept(shards: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("franca_fast.data.indexing._MEMORY", 400)
    indexes = ShardIndexes(shards)
    assert [len(indexes[number]) for number in [*range(6), *range(6)]] == [5] * 12
    assert 1 <= len(indexes) < 4


def test_what_must_stay_in_memory_is_not_made_early(tmp_path: Path) -> None:
    compressed = TarShard(str(tmp_path / "s.tar.gz"))
    command = RemoteShard(f"pipe:touch {tmp_path}/ran", allow_pipe=True)
    indexes = ShardIndexes([compressed, command, TarShard("gone.tar")])
    indexes.prepare([0, 1, 2])
    assert len(indexes) == 1
    assert len(indexes[2]) == 0 and not (tmp_path / "ran").exists()


def test_a_mistake_in_a_thread_is_raised_where_the_index_is_needed() -> None:
    class Broken(Shard):
        name, early = "broken", True

        def index(self) -> ShardIndex:
            raise MemoryError

    indexes = ShardIndexes([Broken()])
    indexes.prepare([0])
    with pytest.raises(MemoryError):
        indexes[0]
