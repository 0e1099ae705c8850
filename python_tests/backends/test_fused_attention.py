"""Which sequences the kernels of our own take."""

from __future__ import annotations

from franca_fast.backends import _fused_attention as fused_attention
from python_tests.backends.test_choices import RUNS, TABLE


def test_runs_are_split_by_the_table_that_the_environment_names(table, card):
    table(TABLE)
    assert fused_attention.own_runs(RUNS, card, "cuda") == (RUNS[0], RUNS[2])
    table({**TABLE, "attention": {"9.0": {"64": ["torch", "own"]}}})
    assert fused_attention.own_runs(RUNS, card, "cuda") == (RUNS[1],)
