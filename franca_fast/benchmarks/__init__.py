"""Benchmarks of the operators beside their baselines: `franca-fast bench` and bench/ use them."""

from __future__ import annotations

from franca_fast.benchmarks.cases import Case, loss_case, scores_case, sinkhorn_case
from franca_fast.benchmarks.measure import copy_bandwidth, machine, measure, table

__all__ = [
    "Case",
    "copy_bandwidth",
    "loss_case",
    "machine",
    "measure",
    "scores_case",
    "sinkhorn_case",
    "table",
]
