"""Micro benchmarks of the clustering operators on CPU, beside their baselines.

    pytest bench/ --benchmark-group-by=param:case

The rows of one table did the same work on the same inputs. bench/cpu.py also measures memory and
writes bench/results/.
"""

from __future__ import annotations

import pytest

from franca_fast.benchmarks.cases import Case, loss_case, sinkhorn_case

CASES: list[Case] = [
    make(n_rows, widths, dtype, with_compile=False)
    for make in (sinkhorn_case, loss_case)
    for widths in ("8192", "nested")
    for n_rows in (64,)
    for dtype in ("fp32", "bf16")
]


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        pytest.param(case, variant, id=f"{case.name} {variant}")
        for case in CASES
        for variant in case.variants
    ],
)
def test_clustering(benchmark, case, variant):
    inputs = case.make()
    benchmark.group = case.name
    benchmark.pedantic(case.variants[variant], (inputs,), rounds=7, warmup_rounds=2)
