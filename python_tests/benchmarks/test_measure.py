"""What a measurement of a work holds."""

from __future__ import annotations

from franca_fast.benchmarks import measure, sinkhorn_case, table


def test_memory_of_results_is_part_of_the_peak():
    case = sinkhorn_case(4, "8192", "fp32", with_compile=False)
    result = measure(case, 0.0)
    for name in case.variants:
        assert 0 < result["result_bytes"][name] <= result["peak_extra_bytes"][name]
    assert len(table([result])) == 1 + len(case.variants)
