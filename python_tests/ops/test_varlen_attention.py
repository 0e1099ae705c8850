"""Packed attention against float64, sequence by sequence."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import attention_float64

LENGTHS = [[1], [5, 5, 5], [17, 5, 5, 17], [1, 64, 65, 50, 50, 197], [257, 49, 16, 1]]


def problem(seqlens, heads=3, dim=16, dtype=torch.float32):
    return [torch.randn(sum(seqlens), heads, dim).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("seqlens", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_equals_float64_forward_and_backward(seqlens, dtype, tolerance):
    qkv = problem(seqlens, dtype=dtype)
    out = ff.ops.varlen_attention(*qkv, seqlens)
    assert out.dtype == dtype and out.is_contiguous()
    reference = [x.detach().double().requires_grad_() for x in qkv]
    expected = attention_float64(*reference, seqlens)
    weight = torch.randn(out.shape)
    (out.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance * scale)
    for ours, theirs in zip(qkv, reference, strict=True):
        bound = tolerance * float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=bound + 1e-6)


def test_reads_q_k_v_in_place_from_the_projection():
    packed = torch.randn(27, 3, 4, 16)
    parts = packed.unbind(1)
    ours = ff.ops.varlen_attention(*parts, [17, 5, 5])
    copies = ff.ops.varlen_attention(*(p.clone() for p in parts), [17, 5, 5])
    assert torch.equal(ours, copies)


def test_gradcheck():
    qkv = problem([3, 2, 2], heads=2, dim=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: ff.ops.varlen_attention(*x, [3, 2, 2]), qkv)


def test_same_bits_on_repeated_calls():
    qkv = problem([17, 5, 5])
    first, second = (ff.ops.varlen_attention(*qkv, [17, 5, 5]) for _ in range(2))
    assert torch.equal(first, second)


def test_operator_keeps_pytorchs_contract():
    qkv = problem([17, 5, 5])
    opcheck(torch.ops.franca_fast.varlen_attention.default, (*qkv, [17, 5, 5], 0.25))


def test_compiles_without_graph_breaks():
    qkv = problem([17, 5, 5])
    compiled = torch.compile(ff.ops.varlen_attention, fullgraph=True, backend="aot_eager")
    expected = ff.ops.varlen_attention(*qkv, [17, 5, 5])
    assert torch.equal(compiled(*qkv, [17, 5, 5]), expected)


@pytest.mark.parametrize("seqlens", [[], [27, 0], [-1, 28], [26], [28]])
def test_lengths_that_do_not_fit_are_refused(seqlens):
    with pytest.raises(InputError, match="seqlens: "):
        ff.ops.varlen_attention(*problem([27]), seqlens)


def test_tensors_that_do_not_match_are_refused():
    q, k, v = problem([27])
    with pytest.raises(InputError, match="k: shape"):
        ff.ops.varlen_attention(q, k[:26], v, [27])
    with pytest.raises(InputError, match=r"v: torch\.bfloat16"):
        ff.ops.varlen_attention(q, k, v.bfloat16(), [27])
