"""SwiGLU in the compiled core: instruction sets, threads, memory."""

from __future__ import annotations

import pytest
import torch

from franca_fast.backends.cpu import swiglu as compiled
from franca_fast.backends.torch import swiglu as reference
from python_tests.backends.cpu.helpers import DTYPES, misaligned, poisoned_memory, threads

pytestmark = pytest.mark.usefixtures("isa")


def results(module, h, grad):
    return [module.forward(h), module.backward(grad, h)]


def inputs(n_rows, width, dtype=torch.float32):
    h, grad = torch.randn(n_rows, 2 * width).mul(3), torch.randn(n_rows, width)
    return h.to(dtype), grad.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 8, 15, 16, 17, 64, 83, 88])
def test_every_width_equals_float64(width, dtype):
    h, grad = inputs(5, width, dtype)
    with poisoned_memory():
        ours = results(compiled, h, grad)
    for value, exact in zip(ours, results(reference, h.double(), grad.double()), strict=True):
        assert value.dtype == dtype
        relative = max(1e-6, 0.51 * torch.finfo(dtype).eps)
        torch.testing.assert_close(value.double(), exact, rtol=relative, atol=1e-6)


def test_large_results_are_written_whole():
    h, grad = inputs(8000, 176)
    with poisoned_memory():
        ours = results(compiled, h, grad)
    for value, expected in zip(ours, results(reference, h, grad), strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=2e-6)


def test_threads_do_not_change_a_bit():
    h, grad = inputs(1001, 90)
    found = []
    for count in (1, 3):
        with threads(count):
            found.append(results(compiled, h, grad))
    assert all(map(torch.equal, *found))


def test_rows_may_begin_anywhere():
    h, grad = inputs(6, 37)
    apart = results(compiled, misaligned(h), misaligned(grad))
    assert all(map(torch.equal, apart, results(compiled, h, grad)))
