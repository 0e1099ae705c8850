"""Sinkhorn-Knopp against the golden values and float64, at sane and at hostile sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import backends_of, heads, sinkhorn_float64

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=backends_of("sinkhorn"))
def backend(request):
    with ff.use_backend(request.param):
        yield request.param


def ragged(n, columns=(1, 3, 32, 130, 1031)):
    return [torch.randn(n, k) for k in columns]


def test_equals_golden(golden, golden_facts, backend):
    facts = golden_facts["sinkhorn"]
    q = ff.ops.sinkhorn_knopp(
        heads(golden, "sinkhorn.logits"), facts["temperature"], facts["n_iterations"]
    )
    for ours, theirs in zip(q, heads(golden, "sinkhorn.assignments"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 257])
@pytest.mark.parametrize("temperature", [0.04, 1.0])
def test_equals_float64_for_ragged_heads(backend, n, temperature):
    z = ragged(n)
    for ours, logits in zip(ff.ops.sinkhorn_knopp(z, temperature), z, strict=True):
        bound = 4 * EPS * max(1.0, float(logits.abs().max()) / temperature)
        error = (ours - sinkhorn_float64(logits, temperature)).abs().max()
        assert error <= bound


@pytest.mark.parametrize("scale", [10.0, 1e4])
def test_huge_logits_stay_finite_and_balanced(backend, scale):
    z = [torch.randn(33, k).clamp(-1, 1) * scale for k in (8, 257)]
    for ours, logits in zip(ff.ops.sinkhorn_knopp(z, 0.04), z, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours.sum(dim=1), torch.ones(33), rtol=0, atol=1e-5)
        bound = 4 * EPS * float(logits.abs().max()) / 0.04
        assert (ours - sinkhorn_float64(logits, 0.04)).abs().max() <= bound


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_potentials_rebuild_the_assignments(backend, scale):
    z = torch.randn(9, 40) * scale
    potentials = ff.ops.sinkhorn_potentials(z, 0.04)
    q = torch.exp(z / 0.04 + potentials.prototype[0] + potentials.row[0][:, None])
    bound = 8 * EPS * float(z.abs().max()) / 0.04
    torch.testing.assert_close(q, ff.ops.sinkhorn_knopp(z, 0.04), rtol=0, atol=max(1e-6, bound))


def test_one_prototype_takes_everything(backend):
    assert torch.equal(ff.ops.sinkhorn_knopp(torch.randn(5, 1), 0.04), torch.ones(5, 1))


def test_padding_rows_change_nothing(backend):
    z = ragged(12)
    padded = [torch.cat([x, torch.full((4, x.shape[1]), 1e3)]) for x in z]
    expected = ff.ops.sinkhorn_knopp(z, 0.05)
    ours = ff.ops.sinkhorn_knopp(padded, 0.05, n_valid=12)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a[:12], b)
        assert not a[12:].any()


def test_padding_may_hold_nan(backend):
    z = torch.cat([torch.randn(6, 8), torch.full((2, 8), math.nan)])
    q = ff.ops.sinkhorn_knopp(z, 0.05, n_valid=6)
    assert torch.equal(q[:6], ff.ops.sinkhorn_knopp(z[:6], 0.05))


@pytest.mark.parametrize(("n", "n_valid"), [(0, None), (3, 0)])
def test_no_rows_give_no_assignments(backend, n, n_valid):
    potentials = ff.ops.sinkhorn_potentials(torch.randn(n, 8), 0.05, n_valid=n_valid)
    assert torch.equal(potentials.prototype[0], torch.zeros(8))
    assert not ff.ops.sinkhorn_knopp(torch.randn(n, 8), 0.05, n_valid=n_valid).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_float32(backend, dtype):
    z = torch.randn(17, 100).to(dtype)
    q = ff.ops.sinkhorn_knopp(z, 0.05)
    assert q.dtype == torch.float32
    torch.testing.assert_close(q, ff.ops.sinkhorn_knopp(z.float(), 0.05), rtol=1e-5, atol=1e-7)


def test_strided_rows(backend):
    z = torch.randn(16, 200)
    torch.testing.assert_close(
        ff.ops.sinkhorn_knopp(z[::2, 3:150], 0.05),
        ff.ops.sinkhorn_knopp(z[::2, 3:150].clone(), 0.05),
        rtol=1e-6,
        atol=1e-8,
    )


def test_same_bits_on_repeated_calls(backend):
    z = ragged(50)
    first, second = (ff.ops.sinkhorn_potentials(z, 0.05) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.prototype, second.prototype, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.row, second.row, strict=True))


def test_targets_carry_no_gradient():
    z = torch.randn(4, 8, requires_grad=True)
    assert not ff.ops.sinkhorn_knopp(z, 0.05).requires_grad
    assert not ff.ops.sinkhorn_potentials(z, 0.05).prototype[0].requires_grad


def test_operators_keep_pytorchs_contract():
    z = ragged(6)
    library = torch.ops.franca_fast
    prototype, _ = library.sinkhorn_potentials(z, 5, 0.05, 3, 6, None)
    opcheck(library.sinkhorn_potentials.default, (z, 5, 0.05, 3, 5, None))
    opcheck(library.sinkhorn_assignments.default, (z, 0.05, prototype, 5))
    streamed = [torch.randn(6, 4), torch.randn(9, 4), torch.rand(9)]
    opcheck(library.sinkhorn_potentials.default, (streamed, 1, 0.05, 3, 5, None))


def test_compiles_without_graph_breaks():
    z = torch.randn(6, 8)
    compiled = torch.compile(ff.ops.sinkhorn_knopp, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(z, 0.05), ff.ops.sinkhorn_knopp(z, 0.05))


def test_streamed_scores_compile_without_graph_breaks():
    def rows(x: Tensor, v: Tensor) -> Tensor:
        scores = ff.ops.Scores([x], [v], [torch.ones(v.shape[0])])
        return ff.ops.sinkhorn_potentials(scores, 0.05).row[0]

    x, v = torch.randn(6, 4), torch.randn(8, 4)
    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, v), rows(x, v))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(temperature=0.0), "temperature: 0.0"),
        (dict(temperature=math.nan), "temperature: nan"),
        (dict(temperature=1e-50), "temperature: 1e-50"),
        (dict(temperature=math.inf), "temperature: inf"),
        (dict(n_iterations=0), "n_iterations: 0"),
        (dict(n_valid=5), "n_valid: 5"),
        (dict(n_valid=-1), "n_valid: -1"),
        (dict(logits=torch.zeros(4, 8, dtype=torch.int64)), "logits\\[0\\]: dtype torch.int64"),
        (dict(logits=torch.zeros(8)), "logits\\[0\\]: a tensor of shape \\(8,\\)"),
        (dict(logits=torch.zeros(4, 0)), "at least one column"),
        (dict(logits=[]), "empty sequence"),
        (dict(logits=[torch.zeros(4, 8), torch.zeros(3, 8)]), "logits\\[1\\]: 3 rows"),
        (dict(logits=[torch.zeros(4, 8), torch.zeros(4, 8).double()]), "one dtype"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        ff.ops.sinkhorn_knopp(**{"logits": torch.zeros(4, 8), "temperature": 0.1, **arguments})
