"""Nested prototype scores against float64 and the weight-normalised definition."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import DEVICE

HEADS = ((8, 16), (33, 16), (1, 5))


def problem(n=6, dtype=torch.float32):
    x = [torch.randn(n, c, dtype=dtype, requires_grad=True) for _, c in HEADS]
    v = [torch.randn(k, c, dtype=dtype, requires_grad=True) for k, c in HEADS]
    scales = [torch.rand(k, dtype=dtype, requires_grad=True) for k, _ in HEADS]
    return x, v, scales


@pytest.mark.parametrize("n", [0, 1, 6, 40])
@pytest.mark.parametrize("scaled", [False, True])
def test_equals_the_definition_forward_and_backward(n, scaled):
    x, v, scales = problem(n, torch.float64)
    ours = ff.ops.prototype_scores(x, v, scales=scales if scaled else None)
    factors = scales if scaled else [torch.ones(k) for k, _ in HEADS]
    expected = [a @ (f[:, None] * b).t() for a, b, f in zip(x, v, factors, strict=True)]
    inputs = x + v + (scales if scaled else [])
    weights = [torch.randn_like(e) for e in expected]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    gradients = [
        torch.autograd.grad([(s * w).sum() for s, w in zip(scores, weights, strict=True)], inputs)
        for scores in (ours, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    x, v, scales = problem(3, torch.float64)

    def scores(*tensors):
        return ff.ops.prototype_scores(tensors[:3], tensors[3:6], scales=tensors[6:])

    assert torch.autograd.gradcheck(scores, (*x, *v, *scales))


def test_autocast_runs_in_its_dtype():
    x, v, scales = problem()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        scores = ff.ops.prototype_scores(x, v, scales=scales)
    assert {s.dtype for s in scores} == {torch.bfloat16}
    sum(s.float().sum() for s in scores).backward()
    assert {t.grad.dtype for t in x + v + scales} == {torch.float32}


def test_operator_keeps_pytorchs_contract():
    x, v, scales = problem()
    operator = torch.ops.franca_fast.prototype_scores.default
    opcheck(operator, (x, v, scales))
    opcheck(operator, (x, v, []))


def test_compiles_without_graph_breaks():
    x, v, scales = problem()

    def total(features):
        return sum(s.sum() for s in ff.ops.prototype_scores(features, v, scales=scales))

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), total(x))


def test_wrong_arguments_are_named():
    x, v, scales = problem()
    with pytest.raises(InputError, match="prototypes: columns"):
        ff.ops.prototype_scores(x, v[::-1])
    with pytest.raises(InputError, match="scales: shapes"):
        ff.ops.prototype_scores(x, v, scales=scales[:2])
    with pytest.raises(InputError, match=r"scales\[0\]: torch\.float32 on meta"):
        ff.ops.prototype_scores(x, v, scales=[s.to("meta") for s in scales])
    with pytest.raises(InputError, match=r"scales\[0\]: .* \(list\); accepted: a tensor"):
        ff.ops.prototype_scores(x, v, scales=[s.tolist() for s in scales])
    with pytest.raises(InputError, match=r"prototypes: torch\.float64"):
        ff.ops.prototype_scores(x, [m.double() for m in v])
