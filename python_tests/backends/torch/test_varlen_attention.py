"""Runs of sequences of one length, which attention takes together."""

from __future__ import annotations

from franca_fast.backends.torch.varlen_attention import Run, runs_of

RUNS = runs_of([50, 50, 257, 50])


def test_runs_are_sequences_of_one_length_that_follow_each_other():
    assert list(RUNS) == [Run(0, 2, 50), Run(100, 1, 257), Run(357, 1, 50)]
