"""Whole steps, timed."""

from __future__ import annotations

from bench.gpu import steps


def test_slow_steps_are_timed_less_often(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(steps.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        def step(i):
            clock[0] += seconds

        return step

    assert steps.timed_steps(takes(1.5), 4.0) == [1.5] * steps.FEWEST_STEPS
    assert len(steps.timed_steps(takes(0.8), 4.0)) == 5
    assert len(steps.timed_steps(takes(0.1), 4.0)) == steps.MOST_STEPS
