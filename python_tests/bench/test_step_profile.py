"""Kinds of operators: each time is counted once."""

from __future__ import annotations

import pytest

from bench.step_profile import KINDS, REST, by_kind, kind, profile_tables

OPERATORS = {"": [10.0, 1], "aten::mm": [4.0, 2], "aten::mul_": [1.0, 3], "Unknown": [2.0, 1]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::mkldnn_linear", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("franca_fast::varlen_attention", "attention"),
        ("franca_fast::prototype_scores", "our operators"),
        ("aten::_fused_adamw_", "optimizer"),
        ("Optimizer.step#AdamW.step", "optimizer"),
        ("aten::native_layer_norm_backward", "reductions and norms"),
        ("aten::_foreach_norm", "reductions and norms"),
        ("aten::mul", "elementwise"),
        ("aten::_foreach_mul_", "elementwise"),
        ("aten::gelu_backward", "elementwise"),
        ("aten::clamp_min_", "elementwise"),
        ("aten::select_backward", "copies"),
        ("aten::copy_", "copies"),
        ("aten::cat", "copies"),
        ("aten::empty", REST),
        ("aten::view", REST),
    ],
)
def test_kinds(name, expected):
    assert kind(name) == expected


def test_the_kinds_make_up_the_step():
    found = by_kind(OPERATORS)
    assert found == dict.fromkeys(KINDS, 0.0) | {
        "matrix products": 4.0,
        "elementwise": 1.0,
        REST: 5.0,  # 2 of an operator, and 3 that no operator has
    }
    rows = profile_tables({"new": OPERATORS, "old": OPERATORS}).splitlines()
    assert "| matrix products | 4.0 | 40.0% | 4.0 | 40.0% |" in rows
    assert "| the step | 10.0 | 100.0% | 10.0 | 100.0% |" in rows
    assert rows.count("| aten::mul_ | elementwise | 3 | 1.0 |") == 2
