from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.evaluation.feature_cache import FeatureCache, weights_checksum

FACTS = {"weights": "a", "size": 28}
ROWS = torch.arange(24, dtype=torch.float32).reshape(6, 2, 2)


def test_rows_come_back_and_count_once_they_are_there(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "new" / "folder")
    passing = cache.keep(FACTS, 0, ROWS.split(2))
    assert torch.equal(next(passing), ROWS[:2])
    assert cache.done(FACTS) == 2
    passing.close()
    assert torch.equal(cache.kept(FACTS, 2), ROWS[:2])
    list(cache.keep(FACTS, 2, ROWS[2:].split(3)))
    assert cache.done(FACTS) == 6 and torch.equal(cache.kept(FACTS, 6), ROWS)


def test_other_facts_are_another_file(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    assert cache.path(FACTS, ".npy") != cache.path({**FACTS, "size": 29}, ".npy")
    assert cache.path(FACTS, ".npy") == cache.path(dict(reversed(FACTS.items())), ".npy")
    list(cache.keep(FACTS, 0, [ROWS]))
    assert cache.done({**FACTS, "weights": "b"}) == 0


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"rows": null}'])
def test_a_damaged_count_is_no_count(tmp_path: Path, text: str) -> None:
    cache = FeatureCache(tmp_path)
    list(cache.keep(FACTS, 0, [ROWS]))
    cache.path(FACTS, ".json").write_text(text)
    assert cache.done(FACTS) == 0
    list(cache.keep(FACTS, 0, [ROWS + 1]))
    assert torch.equal(cache.kept(FACTS, 6), ROWS + 1)


def test_features_that_were_cut_off_are_computed_again(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    list(cache.keep(FACTS, 0, [ROWS]))
    file = cache.path(FACTS, ".f32")
    file.write_bytes(file.read_bytes()[:-8])
    assert cache.done(FACTS) == 0


def test_the_count_says_what_the_features_are(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    list(cache.keep(FACTS, 0, [ROWS]))
    assert json.loads(cache.path(FACTS, ".json").read_text()) == {**FACTS, "row": [2, 2], "rows": 6}


def test_a_second_process_takes_nothing_away(tmp_path: Path) -> None:
    first, second = (FeatureCache(tmp_path) for _ in range(2))
    ours, theirs = (cache.keep(FACTS, 0, ROWS.split(2)) for cache in (first, second))
    next(ours)
    next(theirs)
    list(ours)
    theirs.close()  # interrupted
    kept = first.done(FACTS)
    assert kept == 6 and torch.equal(first.kept(FACTS, kept), ROWS)


def test_rows_stand_in_their_places_although_others_went_on(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    list(cache.keep(FACTS, 0, [ROWS[:2]]))
    late = cache.keep(FACTS, cache.done(FACTS), ROWS[2:].split(2))
    list(cache.keep(FACTS, 2, [ROWS[2:4]]))  # of another process
    list(late)
    assert torch.equal(cache.kept(FACTS, cache.done(FACTS)), ROWS)


def test_a_file_that_was_taken_away_gets_no_gap(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    list(cache.keep(FACTS, 0, [ROWS[:2]]))
    cache.path(FACTS, ".f32").unlink()
    assert torch.equal(*cache.keep(FACTS, 2, [ROWS[2:]]), ROWS[2:])
    assert cache.done(FACTS) == 0


def test_a_full_disk_is_an_error_and_keeps_what_was_there(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    passing = cache.keep(FACTS, 0, ROWS.split(2))
    next(passing)
    file = cache.path(FACTS, ".f32")
    with full_after(file.stat().st_size), pytest.raises(OSError, match="too large") as raised:
        next(passing)
    assert raised.value.filename == str(file)
    assert cache.done(FACTS) == 2 and torch.equal(cache.kept(FACTS, 2), ROWS[:2])


@contextmanager
def full_after(n_bytes: int) -> Iterator[None]:
    """No file gets longer, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_folder_without_a_name_or_room(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"features_cache: '' \(no name\)"):
        FeatureCache("")
    with full_after(0), pytest.raises(InputError, match=r"features_cache: .*large.*accepted"):
        FeatureCache(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"features_cache: .*accepted: a folder"):
        FeatureCache(tmp_path / "file" / "cache")


def test_the_checksum_sees_names_values_and_buffers() -> None:
    layer = torch.nn.BatchNorm1d(3)
    sums = {weights_checksum(layer)}
    layer.running_mean[0] = 1e-30
    sums.add(weights_checksum(layer))
    with torch.no_grad():
        layer.weight[0] = 2
    sums.add(weights_checksum(layer))
    assert len(sums) == 3 and weights_checksum(layer) in sums
    assert weights_checksum(lambda images: images) is None
