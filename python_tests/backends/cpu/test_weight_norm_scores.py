"""Weight-normalised prototypes in the compiled core: blocks, memory, threads, instruction sets."""

from __future__ import annotations

import pytest
import torch

from franca_fast.backends.cpu import weight_norm_scores as cpu
from franca_fast.backends.torch import weight_norm_scores as reference
from python_tests.backends.cpu.helpers import DTYPES, misaligned, poisoned_memory, threads


def inputs(n_rows, n_prototypes, width, dtype=torch.float32, low=None):
    low = low or dtype
    x, grad = torch.randn(n_rows, width).to(low), torch.randn(n_rows, n_prototypes).to(low)
    v, g = torch.randn(n_prototypes, width).to(dtype), (torch.rand(n_prototypes) + 0.5).to(dtype)
    return x, v, g, grad


def results(module, x, v, g, grad, given=None):
    return [module.forward(x, v, g, given), *module.backward(grad, x, v, g, given)]


def assert_near(ours, exact, tolerance):
    for value, target in zip(ours, exact, strict=True):
        size = float(target.abs().max()) if target.numel() else 0.0
        torch.testing.assert_close(value.double(), target, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("n_prototypes", [1, 15, 16, 17, 50])
def test_blocks_of_any_number_equal_float64(n_prototypes, monkeypatch, isa):
    monkeypatch.setattr(cpu, "_BLOCK_ROWS", 16)
    given = inputs(9, n_prototypes, 37)
    exact = results(reference, *(t.double() for t in given))
    with poisoned_memory():
        assert_near(results(cpu, *given), exact, 2e-6)


@pytest.mark.parametrize("low", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_of_dtypes_equals_float64(dtype, low, isa):
    _, v, g, _ = inputs(1, 70, 41, dtype, low)
    wide_v, wide_g = v.double(), g.double()
    # A normalised prototype is rounded once.
    w = cpu.normalized(v, g, low)
    exact = reference.normalized(wide_v, wide_g, torch.float64)
    eps = torch.finfo(low).eps
    assert w.dtype == low and bool(
        (w - exact).abs().le((0.51 * eps + 1e-6) * exact.abs() + 1e-7).all()
    )
    dw, dscales = torch.randn(70, 41).to(low), torch.randn(70)
    for given in (None, dscales):
        with poisoned_memory():
            ours = cpu.gradients(dw, given, v, g)
        wide = None if given is None else given.double()
        assert [t.dtype for t in ours] == [dtype, dtype]
        exact_pair = reference.gradients(dw.double(), wide, wide_v, wide_g)
        assert_near(ours, exact_pair, torch.finfo(dtype).eps + 2e-6)


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_the_bits(low):
    _, v, g, _ = inputs(5, 4000, 64, low=low)
    found = []
    for count in (1, 3):
        with threads(count):
            w = cpu.normalized(v, g, low)
            found.append([w, *cpu.gradients(w, None, v, g), *cpu.gradients(w, g, v, g)])
    assert all(map(torch.equal, *found))


def test_rows_may_begin_anywhere():
    x, v, g, grad = inputs(5, 30, 13)
    expected = results(cpu, x, v, g, grad)
    for a, b in zip(results(cpu, *map(misaligned, (x, v)), g, grad), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_prototype_of_length_nought_gives_nan_and_touches_no_other():
    x, v, g, grad = inputs(5, 9, 16)
    v[3] = 0
    scores, _, dv, dg = results(cpu, x, v, g, grad)
    others = [k for k in range(9) if k != 3]
    assert scores[:, 3].isnan().all() and scores[:, others].isfinite().all()
    assert dv[3].isnan().all() and dv[others].isfinite().all() and dg[others].isfinite().all()
