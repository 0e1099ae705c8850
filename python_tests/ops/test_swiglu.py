"""SwiGLU's product and its gradient against the equation in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.library import opcheck

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import DEVICE, backends_of, peak_bytes

# Of h: no rows, one element, one dimension, several; ends of vectors and of programs.
SHAPES = [(2,), (1, 2), (0, 6), (3, 0, 4), (7, 1, 6), (2, 3, 34), (5, 130), (3, 2060), (40, 96)]
INF, NAN = math.inf, math.nan


def problem(shape, dtype=torch.float32):
    """Gates of both signs, most of them where the sigmoid is neither 0 nor 1."""
    h = torch.randn(shape).mul(3).to(dtype).requires_grad_()
    return h, torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)


def exact(h, grad):
    """Product and gradient by the equations, in float64."""
    (g, v), d = h.detach().double().chunk(2, -1), grad.double()
    s = 1 / (1 + torch.exp(-g))
    return g * s * v, torch.cat([d * v * s * (1 + g * (1 - s)), d * g * s], dim=-1)


def ours(h, grad):
    product = ff.ops.swiglu(h)
    return product.detach(), *torch.autograd.grad(product, h, grad)


def assert_near(results, expected, relative, absolute=1e-6):
    for result, target in zip(results, expected, strict=True):
        assert result.is_contiguous()
        torch.testing.assert_close(result.double(), target, rtol=relative, atol=absolute)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", backends_of("swiglu"))
def test_equals_float64(backend, shape):
    h, grad = problem(shape)
    with ff.use_backend(backend):
        results = ours(h, grad)
    assert [r.dtype for r in results] == [torch.float32] * 2
    assert_near(results, exact(h, grad), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", backends_of("swiglu", torch.bfloat16))
def test_low_precision_is_rounded_once(backend, dtype):
    h, grad = problem((20, 70), dtype)
    with ff.use_backend(backend):
        results = ours(h, grad)
    assert [r.dtype for r in results] == [dtype] * 2
    # PyTorch's operators round what is between them, too, and Triton's interpreter cuts off.
    cut_off = backend == "triton" and DEVICE.type == "cpu"
    roundings = 2 if backend == "torch" or cut_off else 1
    assert_near(results, exact(h, grad), 0.51 * roundings * torch.finfo(dtype).eps)


def test_the_reference_equals_the_equations_in_float64():
    h, grad = problem((2, 3, 34), torch.float64)
    with ff.use_backend("torch"):
        assert_near(ours(h, grad), exact(h, grad), 1e-14, 1e-14)


def test_float64_by_gradcheck():
    h, _ = problem((3, 10), torch.float64)
    assert torch.autograd.gradcheck(ff.ops.swiglu, h)


@pytest.mark.parametrize("backend", backends_of("swiglu"))
def test_extreme_gates_are_those_of_pytorch(backend):
    gates = [-INF, -3e38, -1e30, -200.0, -88.5, -80.0, -0.0, 0.0, 80.0, 3e38, INF, NAN]
    g = torch.tensor(gates * 3)  # whole vectors and an end
    h = torch.cat([g, torch.full_like(g, 2.0)]).requires_grad_()
    grad = torch.full_like(g, 0.25)
    with ff.use_backend(backend):
        product, gradient = ours(h, grad)
    plain = g.clone().requires_grad_()
    silu = torch.nn.functional.silu(plain)
    (dgate,) = torch.autograd.grad(2 * silu, plain, grad)
    expected = [2 * silu.detach(), torch.cat([dgate, 0.25 * silu.detach()])]
    for result, target in zip((product, gradient), expected, strict=True):
        torch.testing.assert_close(result, target, rtol=1e-6, atol=1e-36, equal_nan=True)
    assert torch.equal(product.nan_to_num().signbit(), expected[0].nan_to_num().signbit())


@pytest.mark.parametrize("backend", backends_of("swiglu"))
def test_large_values_beside_a_closed_gate_give_nought(backend):
    g = torch.full((17,), -200.0)
    h = torch.cat([g, torch.full_like(g, 3e38)]).requires_grad_()
    with ff.use_backend(backend):
        product = ff.ops.swiglu(h)
    assert not product.any()


STRIDES = {
    "rows apart": lambda h: torch.cat([h, h], dim=-1)[..., : h.shape[-1]],
    "columns apart": lambda h: h.mT.contiguous().mT,
    "images apart": lambda h: h.transpose(0, 1).contiguous().transpose(0, 1),
    "every other element": lambda h: h.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("backend", backends_of("swiglu"))
def test_any_strides(backend, name):
    h, grad = problem((3, 4, 36))
    apart = STRIDES[name](h.detach()).requires_grad_()
    assert not apart.is_contiguous()
    with ff.use_backend(backend):
        for d in (STRIDES[name](grad), grad[:1, :1, :1].expand_as(grad)):
            for result, expected in zip(ours(apart, d), ours(h, d.contiguous()), strict=True):
                torch.testing.assert_close(result, expected)
                assert result.is_contiguous()


def test_results_may_be_written_to():
    h, _ = problem((3, 4, 36))
    ff.ops.swiglu(h).add_(1).sum().backward()
    assert torch.equal(h.grad, ours(h, torch.ones(3, 4, 18))[1])


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the profiler's allocations are those of a CPU")
def test_nothing_but_the_gradient_is_held_on_a_cpu():
    h, grad = problem((4096, 352))
    product = ff.ops.swiglu(h)
    peak = peak_bytes(lambda: torch.autograd.grad(product, h, grad, retain_graph=True))
    assert peak < 1.5 * h.nbytes + (4 << 20)


def test_autocast_leaves_the_dtype():
    h, _ = problem((5, 8), torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert ff.ops.swiglu(h).dtype == torch.bfloat16


def test_operators_keep_pytorchs_contract():
    library = torch.ops.franca_fast
    for shape in ((2, 3, 10), (0, 4), (6,)):
        h, grad = problem(shape)
        opcheck(library.swiglu.default, (h,))
        opcheck(library.swiglu_backward.default, (grad, h.detach()))


def test_compiles_without_graph_breaks():
    h, _ = problem((5, 12))
    compiled = torch.compile(ff.ops.swiglu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h), ff.ops.swiglu(h))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 7), (4, 0)])
def test_halves_must_be_equal(shape):
    with pytest.raises(InputError, match=r"^h: a tensor of shape \(.*; accepted: .*2 w"):
        ff.ops.swiglu(torch.zeros(shape))
