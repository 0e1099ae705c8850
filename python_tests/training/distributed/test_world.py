"""Ranks: one process is a world of its own; several agree, share errors and meet torchrun's."""

from __future__ import annotations

import pytest

from franca_fast.errors import InputError
from franca_fast.training.distributed.world import World


def test_one_process_needs_no_group() -> None:
    world = World.join("cpu", 1.0)
    assert (world.rank, world.size, world.group) == (0, 1, None)
    assert world.all_reduce([1, 2]) == [1, 2]
    assert world.all_gather([3.0]) == [[3.0]]
    assert world.all_gather_object("x") == ["x"]
    assert world.on_first(lambda: 5) == 5
    world.close()


def test_one_rank_of_torchrun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    world = World.join("cpu", 1.0)
    assert (world.rank, world.size, world.group) == (0, 1, None)


@pytest.mark.parametrize(
    ("rank", "size", "message"), [("2", "2", "RANK: 2; accepted"), ("x", "2", "RANK: 'x'")]
)
def test_ranks_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, rank: str, size: str, message: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(InputError, match=message):
        World.join("cpu", 1.0)


def test_errors_pass_through_on_one_process() -> None:
    world = World()
    with pytest.raises(InputError, match="wrong"), world.together():
        raise InputError("wrong")
    with pytest.raises(RuntimeError, match="connection"), world.watch():
        raise RuntimeError("connection of something else")
