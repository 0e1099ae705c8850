"""Which sequences the compiled core takes."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.backends.contracts import AttentionProblem
from franca_fast.backends.cpu import varlen_attention as attention
from franca_fast.backends.torch.varlen_attention import Run


@pytest.mark.parametrize("units", [False, True])
def test_long_sequences_of_16_bits_are_left_to_matrix_units(monkeypatch, units):
    monkeypatch.setattr(attention, "_has_matrix_units", lambda: units)
    runs = (Run(0, 2, 64), Run(128, 1, 65))
    taken = {}
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.empty(193, 1, 16, dtype=dtype)
        problem = AttentionProblem(q, q, q, [64, 64, 65], 0.25)
        taken[dtype] = attention._own_runs(problem)
        with ff.use_backend("cpu"):
            assert attention._own_runs(problem) == runs
    assert taken == {torch.float32: runs, torch.bfloat16: runs[:1] if units else runs}


def test_what_is_left_is_computed_too(monkeypatch):
    qkv = torch.randn(193, 3, 2, 16, dtype=torch.bfloat16, requires_grad=True)
    results = []
    for units in (False, True):
        monkeypatch.setattr(attention, "_has_matrix_units", lambda units=units: units)
        out = ff.ops.varlen_attention_qkv(qkv, [64, 64, 65])
        (gradient,) = torch.autograd.grad(out.float().sin().sum(), qkv)
        results.append([out.detach(), gradient])
    for ours, split in zip(*results, strict=True):
        assert torch.equal(ours[:128], split[:128])
        torch.testing.assert_close(ours[128:], split[128:], rtol=2e-2, atol=2e-2)
