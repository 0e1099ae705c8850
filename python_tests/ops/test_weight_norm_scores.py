"""Scores of weight-normalised prototypes against float64 and PyTorch's weight norm."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import franca_fast as ff
from franca_fast.errors import InputError
from franca_fast.ops import normalized_prototypes, streamed_prototypes
from python_tests.helpers import DEVICE, backends_of, peak_bytes

SHAPES = [(6, 8, 16), (1, 1, 5), (0, 3, 4), (40, 33, 17), (5, 300, 64)]


def problem(n=6, k=8, c=16, dtype=torch.float32, low=None):
    x = torch.randn(n, c).to(low or dtype).requires_grad_()
    v = torch.randn(k, c).to(dtype).requires_grad_()
    g = (torch.rand(k) + 0.5).to(dtype).requires_grad_()
    return x, v, g


def exact(x, v, g, grad):
    """Scores and gradients by autograd through the definition, in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (x, v, g)]
    a, b, length = leaves
    scores = a @ (length[:, None] * b / b.norm(dim=1, keepdim=True)).t()
    return [scores.detach(), *torch.autograd.grad(scores, leaves, grad.double())]


def ours(x, v, g, grad, **options):
    scores = ff.ops.weight_norm_scores(x, v, g, **options)
    return [scores.detach(), *torch.autograd.grad(scores, (x, v, g), grad)]


def assert_near(values, expected, tolerance):
    for value, target in zip(values, expected, strict=True):
        size = float(target.norm()) if target.isfinite().all() else 1.0
        torch.testing.assert_close(
            value.double(), target, rtol=0, atol=tolerance * max(size, 1e-30), equal_nan=True
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", backends_of("weight_norm_scores"))
def test_equals_float64(backend, shape):
    inputs = problem(*shape)
    grad = torch.randn(shape[:2])
    with ff.use_backend(backend):
        results = ours(*inputs, grad)
    assert [r.dtype for r in results] == [torch.float32] * 4
    assert_near(results, exact(*inputs, grad), 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [True, False], ids=["from float32", "all of it"])
@pytest.mark.parametrize("backend", backends_of("weight_norm_scores", torch.bfloat16))
def test_low_precision_rounds_as_its_dtype_does(backend, wide, dtype):
    x, v, g = problem(33, 130, 72, torch.float32 if wide else dtype, low=dtype)
    grad = torch.randn(33, 130).to(dtype)
    with ff.use_backend(backend):
        results = ours(x, v, g, grad)
    assert [r.dtype for r in results] == [dtype, x.dtype, v.dtype, g.dtype]
    assert_near(results, exact(x, v, g, grad), 2 * torch.finfo(dtype).eps)


def test_float64_by_gradcheck():
    assert torch.autograd.gradcheck(ff.ops.weight_norm_scores, problem(3, 4, 5, torch.float64))


@pytest.mark.parametrize("backend", backends_of("weight_norm_scores"))
def test_any_strides(backend):
    x, v, g = problem(6, 8, 16)
    grad = torch.randn(8, 6).t()
    apart = [t.detach().t().contiguous().t().requires_grad_() for t in (x, v)]
    with ff.use_backend(backend):
        results = ours(*apart, g, grad)
        expected = ours(x, v, g, grad.contiguous())
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_shared_prototypes_give_the_same_bits_and_the_gradients_stay_wide():
    x, v, g = problem(low=torch.bfloat16)
    grad = torch.randn(6, 8).bfloat16()
    shared = normalized_prototypes(v, g, torch.bfloat16)
    assert not shared.requires_grad
    results = ours(x, v, g, grad, normalized=shared)
    assert all(map(torch.equal, results, ours(x, v, g, grad)))
    assert results[2].dtype == results[3].dtype == torch.float32


def test_autocast_runs_in_its_dtype():
    x, v, g = problem()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        scores = ff.ops.weight_norm_scores(x, v, g)
    scores.float().sum().backward()
    assert scores.dtype == torch.bfloat16
    assert {t.grad.dtype for t in (x, v, g)} == {torch.float32}


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", backends_of("weight_norm_scores"))
def test_streamed_prototypes_are_those_of_the_scores(backend, low):
    x, v, g = problem(7, 20, 24, low=low)
    grad = torch.randn(7, 20).to(low)
    with ff.use_backend(backend):
        shared = None if low == v.dtype else normalized_prototypes(v, g, low)
        prototypes, scales = streamed_prototypes(v, g, shared)
        assert prototypes.data_ptr() == (v if shared is None else shared).data_ptr()
        (scores,) = ff.ops.prototype_scores([x], [prototypes], scales=[scales])
        results = [scores.detach(), *torch.autograd.grad(scores, (x, v, g), grad)]
    assert_near(results, exact(x, v, g, grad), 2 * torch.finfo(low).eps + 2e-6)


def test_backward_holds_nothing_of_the_size_of_the_scores():
    x, v, g = problem(400, 4096, 64)
    scores = ff.ops.weight_norm_scores(x, v, g)
    grad = torch.randn_like(scores)
    peak = peak_bytes(lambda: torch.autograd.grad(scores, (x, v, g), grad, retain_graph=True))
    assert peak < grad.nbytes


def test_operators_keep_pytorchs_contract():
    library = torch.ops.franca_fast
    for low in (torch.float32, torch.bfloat16):
        x, v, g = problem(low=low)
        given = None if low == v.dtype else normalized_prototypes(v, g, low)
        opcheck(library.weight_norm_scores.default, (x, v, g, given))
        dw = torch.randn(v.shape).to(low)
        for dscales in (None, torch.randn(8)):
            opcheck(library.weight_norm_gradients.default, (dw, dscales, v.detach(), g.detach()))
        opcheck(library.normalized_prototypes.default, (v.detach(), g.detach(), low))


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
def test_compiles_without_graph_breaks(low):
    x, v, g = problem(low=low)

    def total(features):
        shared = None if low == v.dtype else normalized_prototypes(v, g, low)
        prototypes, scales = streamed_prototypes(v, g, shared)
        scores = ff.ops.weight_norm_scores(features, v, g)
        return scores.sum() + prototypes.sum() + scales.sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), total(x))


def test_wrong_arguments_are_named():
    x, v, g = problem()
    scores, bf16 = ff.ops.weight_norm_scores, torch.bfloat16
    with pytest.raises(InputError, match="v: columns"):
        scores(x, v[:, :5], g)
    with pytest.raises(InputError, match=r"g: shape \(7,\)"):
        scores(x, v, g[:7])
    with pytest.raises(InputError, match=r"g: torch\.float64"):
        scores(x, v, g.double())
    with pytest.raises(InputError, match="v: on meta"):
        scores(x, v.to("meta"), g.to("meta"))
    with pytest.raises(InputError, match=r"g: .*list"):
        scores(x, v, g.tolist())
    with pytest.raises(InputError, match=r"normalized: .* accepted: None where"):
        scores(x, v, g, normalized=v)
    with pytest.raises(InputError, match="normalized: a tensor of shape"):
        scores(x.to(bf16), v, g, normalized=normalized_prototypes(v[:5], g[:5], bf16))
    with pytest.raises(InputError, match="v\\[0\\]: a tensor of shape"):
        normalized_prototypes(g, g, bf16)
