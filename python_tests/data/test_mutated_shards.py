"""A sample of the mutated shards; `python -m python_tests.long.fuzz_shards` reads many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.data.mutations import mutated, read_all_ways, tree

SEEDS = range(105)  # seven of each kind


@pytest.mark.parametrize("first", range(0, len(SEEDS), 15))
def test_a_mutated_shard_harms_nothing(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for seed in SEEDS[first : first + 15]:
        name, data, good = mutated(seed)
        path = tmp_path / "folder" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        before = tree(tmp_path)
        read_all_ways(path, good)
        assert tree(tmp_path) == before
