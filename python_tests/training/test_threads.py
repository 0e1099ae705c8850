"""Fewer threads while other programs use the cores."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from franca_fast.training import threads as module
from franca_fast.training.threads import Threads


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time, seconds of all work and of our own on a machine of four cores, with four threads."""
    now = [0.0, 0.0, 0.0]
    count = [4]
    monkeypatch.setattr(module, "cores_used", lambda: tuple(now))
    monkeypatch.setattr(module, "_STAT", Path(__file__))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: count.__setitem__(0, n))
    return now


def threads_after(threads: Threads, machine: list[float], others: float, seconds: float) -> int:
    own = 1.5 * seconds
    for i, more in enumerate((seconds, others * seconds + own, own)):
        machine[i] += more
    threads.adapt()
    return torch.get_num_threads()


def test_threads_follow_the_cores_that_others_leave(
    machine: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    threads = Threads(True)
    assert threads_after(threads, machine, others=0.5, seconds=2.5) == 4
    assert threads_after(threads, machine, others=1.0, seconds=2.5) == 3
    assert threads_after(threads, machine, others=0.5, seconds=2.5) == 3  # not again and again
    assert threads_after(threads, machine, others=9.0, seconds=2.5) == 1
    assert threads_after(threads, machine, others=0.0, seconds=2.5) == 4
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "other programs use 1.0 of 4 cores: 3 threads from now on, not 4"
    assert len(said) == 3


def test_a_moment_does_not_count(machine: list[float]) -> None:
    assert threads_after(Threads(True), machine, others=3.0, seconds=0.5) == 4


def test_without_the_setting_nothing_changes(machine: list[float]) -> None:
    threads = Threads(False)
    assert threads_after(threads, machine, others=3.0, seconds=9.0) == 4


def test_the_process_gets_its_threads_back(machine: list[float]) -> None:
    threads = Threads(True)
    assert threads_after(threads, machine, others=2.0, seconds=9.0) == 2
    threads.close()
    assert torch.get_num_threads() == 4


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc here")
def test_what_this_process_does_is_seen_as_work_of_the_cores() -> None:
    before = module.cores_used()
    while module.cores_used()[2] - before[2] < 0.2:
        pass
    after = module.cores_used()
    seconds, used, own = (b - a for a, b in zip(before, after, strict=True))
    assert own <= used + 0.05  # ticks are hundredths
    assert used <= seconds * len(module.os.sched_getaffinity(0)) + 0.05
