"""The time from the start of a step to the call of its first head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from franca_fast.training.reporting import stopwatch as module
from franca_fast.training.reporting.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that it seems to be."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_a_span_ends_at_the_first_head_and_the_latest_are_averaged(clock: list[float]) -> None:
    heads = [nn.Identity(), nn.Identity()]
    stopwatch = Stopwatch(heads, torch.device("cpu"), 2)
    assert stopwatch.seconds() == 0
    for backbone in (50.0, 1.0, 3.0):
        stopwatch.start()
        for head in heads:
            clock[0] += backbone  # for the second head, what no longer counts
            head(torch.zeros(1))
    assert stopwatch.seconds() == 2.0


def test_a_head_that_is_called_outside_of_a_step_does_not_count(clock: list[float]) -> None:
    head = nn.Identity()
    stopwatch = Stopwatch([head], torch.device("cpu"), 2)
    head(torch.zeros(1))
    assert stopwatch.seconds() == 0
