"""Packed attention against float64, sequence by sequence, for every backend of the device."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import DEVICE, attention_float64, backends_of

LENGTHS = [[1], [5, 5, 5], [17, 5, 5, 17], [1, 64, 65, 50, 50, 197], [257, 49, 16, 1]]
EVERY_LENGTH = [1, 16, 17, 49, 50, 64, 65, 197, 257, 677, 1370]
BACKENDS = [
    pytest.param(name, dtype, id=f"{name}-{dtype}")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for name in backends_of("varlen_attention", dtype)
]


def problem(seqlens, heads=3, dim=16, dtype=torch.float32):
    return [torch.randn(sum(seqlens), heads, dim).to(dtype).requires_grad_() for _ in range(3)]


def results(function, qkv, weight):
    """Output and gradients."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))]


def sdpa(seqlens):
    """PyTorch's attention of each sequence on its own."""

    def run(q, k, v):
        parts = [
            F.scaled_dot_product_attention(*(x.transpose(0, 1).unsqueeze(0) for x in part))
            for part in zip(*(x.split(seqlens) for x in (q, k, v)), strict=True)
        ]
        return torch.cat([part[0].transpose(0, 1) for part in parts])

    return run


def assert_as_good_as_torch(qkv, seqlens):
    """At most twice the error of PyTorch's own kernels in the same precision."""
    weight = torch.randn(qkv[0].shape).to(qkv[0].dtype)
    wide = [x.detach().double() for x in qkv]
    exact = results(lambda *x: attention_float64(*x, seqlens), wide, weight.double())
    theirs = results(sdpa(seqlens), qkv, weight)
    ours = results(lambda *x: ff.ops.varlen_attention(*x, seqlens), qkv, weight)
    eps = torch.finfo(qkv[0].dtype).eps
    for own, their, expected in zip(ours, theirs, exact, strict=True):
        bound = 2 * (their.double() - expected).norm()
        # Where PyTorch is exact by chance, one rounding of the result.
        assert (own.double() - expected).norm() <= bound + eps / 4 * expected.norm()


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


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize("dim", [3, 16, 64, 128])
def test_error_is_at_most_twice_that_of_torch(backend, dtype, dim):
    seqlens = [17, 50, 50, 1, 64, 65]
    with ff.use_backend(backend):
        assert_as_good_as_torch(problem(seqlens, 2, dim, dtype), seqlens)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize("heads", [1, 24])
def test_every_length_in_one_call(backend, dtype, heads):
    # 24 heads of the long sequences would take the reference half a minute on a CPU.
    seqlens = EVERY_LENGTH if heads == 1 or DEVICE.type == "cuda" else EVERY_LENGTH[:8]
    with ff.use_backend(backend):
        assert_as_good_as_torch(problem(seqlens, heads, 64, dtype), seqlens)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_whole_sequence_bucket(backend, dtype):
    with ff.use_backend(backend):
        assert_as_good_as_torch(problem([257, 50], 1, 64, dtype), [257, 50])


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_scale_and_one_tensor_of_queries_keys_and_values(backend, dtype):
    qkv = torch.randn(67, 3, 2, 64).to(dtype).requires_grad_()
    with ff.use_backend(backend):
        packed = ff.ops.varlen_attention_qkv(qkv, [50, 17], scale=0.5)
        packed.float().sin().sum().backward()
        grad, qkv.grad = qkv.grad, None
        out = ff.ops.varlen_attention(*qkv.unbind(1), [50, 17], scale=0.5)
        out.float().sin().sum().backward()
    assert torch.equal(packed, out) and torch.equal(grad, qkv.grad)
    scaled = [x.detach().double() for x in qkv.unbind(1)]
    scaled[0] = scaled[0] * (0.5 * 64**0.5)
    expected = attention_float64(*scaled, [50, 17])
    bound = max(2 * torch.finfo(dtype).eps, 2e-6)  # one rounding, or sums of as many terms
    assert (out.double() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_any_strides_and_addresses_give_the_same_result(backend, dtype):
    parts = torch.randn(27, 3, 4, 64).to(dtype).unbind(1)
    misaligned = [torch.empty(p.numel() + 1, dtype=dtype)[1:].view(p.shape).copy_(p) for p in parts]
    strided = [p.transpose(1, 2).contiguous().transpose(1, 2) for p in parts]
    with ff.use_backend(backend):
        expected = ff.ops.varlen_attention(*(p.clone() for p in parts), [17, 5, 5])
        for given in (parts, misaligned, strided):
            out = ff.ops.varlen_attention(*given, [17, 5, 5])
            if (backend, dtype) == ("torch", torch.float32):  # its products go by the addresses
                torch.testing.assert_close(out, expected)
            else:
                assert torch.equal(out, expected)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_gradients_of_any_strides_give_the_same_bits(backend, dtype):
    qkv = problem([17, 10], 4, 64, dtype)
    one = torch.ones((), dtype=dtype)
    with ff.use_backend(backend):
        out = ff.ops.varlen_attention(*qkv, [17, 10])
        expected = torch.autograd.grad(out, qkv, torch.ones_like(out), retain_graph=True)
        for grad in (one.expand(out.shape), torch.ones(64, 4, 27, dtype=dtype).permute(2, 1, 0)):
            given = torch.autograd.grad(out, qkv, grad, retain_graph=True)
            assert all(map(torch.equal, given, expected))


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_same_bits_on_repeated_calls_and_nothing_read_before_it_is_written(backend, dtype):
    seqlens, weight = [65, 50, 17], torch.randn(132, 2, 64)
    qkv = problem(seqlens, 2, 64, dtype)
    with ff.use_backend(backend):
        first = results(lambda *x: ff.ops.varlen_attention(*x, seqlens), qkv, weight)
        torch.use_deterministic_algorithms(True)  # new memory is filled with NaN
        try:
            assert torch.empty(1).isnan().all()
            second = results(lambda *x: ff.ops.varlen_attention(*x, seqlens), qkv, weight)
        finally:
            torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


@pytest.mark.parametrize("backend", backends_of("varlen_attention", torch.float32))
def test_large_scores_and_values_with_an_offset_cancel(backend):
    # The shares of a query sum to 1 but for rounding, which the offset multiplies.
    qkv = problem([256], 1, 64)
    with torch.no_grad():
        for x, factor, offset in zip(qkv, (10, 10, 1), (0, 0, 5), strict=True):
            x.mul_(factor).add_(offset)
    with ff.use_backend(backend):
        assert_as_good_as_torch(qkv, [256])


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_a_value_that_is_no_number_stays_in_its_sequence_and_head(backend, dtype):
    qkv = [x.detach() for x in problem([17, 5, 5], 2, 16, dtype)]
    with ff.use_backend(backend):
        expected = ff.ops.varlen_attention(*qkv, [17, 5, 5])
        qkv[1][18, 1, 3] = math.nan
        out = ff.ops.varlen_attention(*qkv, [17, 5, 5])
    assert out[17:22, 1].isnan().all()
    out[17:22, 1] = expected[17:22, 1]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("function", ["varlen_attention", "varlen_attention_qkv"])
def test_gradcheck(function):
    qkv = problem([3, 2, 2], heads=2, dim=4, dtype=torch.float64)
    if function == "varlen_attention_qkv":
        qkv = [torch.stack([x.detach() for x in qkv], dim=1).requires_grad_()]
    call = getattr(ff.ops, function)
    assert torch.autograd.gradcheck(lambda *x: call(*x, [3, 2, 2]), qkv)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_operators_keep_pytorchs_contract(backend, dtype):
    qkv = problem([17, 5, 5], 2, 64, dtype)
    packed = torch.randn(27, 3, 2, 64).to(dtype).requires_grad_()
    with ff.use_backend(backend):
        opcheck(torch.ops.franca_fast.varlen_attention.default, (*qkv, [17, 1, 5, 2], 0.25))
        opcheck(torch.ops.franca_fast.varlen_attention_qkv.default, (packed, [17, 1, 5, 2], 0.25))


def test_compiles_without_graph_breaks():
    qkv = problem([17, 5, 5])
    compiled = torch.compile(ff.ops.varlen_attention, fullgraph=True, backend="aot_eager")
    expected = ff.ops.varlen_attention(*qkv, [17, 5, 5])
    assert torch.equal(compiled(*qkv, [17, 5, 5]), expected)


@pytest.mark.parametrize(
    ("seqlens", "message"),
    [
        ([], "seqlens: \\[\\] with sum 0; accepted: lengths >= 1 that sum to 27"),
        ([26], "seqlens: \\[26\\] with sum 26"),
        ([28], "seqlens: \\[28\\] with sum 28"),
        ([27, 0], "seqlens\\[1\\]: 0; accepted: an integer >= 1"),
        ([-1, 28], "seqlens\\[0\\]: -1"),
        ([27.0], "seqlens\\[0\\]: 27.0"),
        ([26, True], "seqlens\\[1\\]: True"),
        ([None, 27], "seqlens\\[0\\]: None"),
        (None, "seqlens: NoneType; accepted: a list of integers"),
        (27, "seqlens: int"),
        ("27", "seqlens: str"),
        (torch.tensor([27]), "seqlens: Tensor"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(seqlens, message):
    q, k, v = problem([27])
    with pytest.raises(InputError, match=message):
        ff.ops.varlen_attention(q, k, v, seqlens)
    with pytest.raises(InputError, match=message):
        ff.ops.varlen_attention_qkv(torch.stack([q, k, v], dim=1), seqlens)


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, math.nan, math.inf, 1e300, True, "1", [1.0]])
def test_scales_that_mean_nothing_are_refused(scale):
    with pytest.raises(InputError, match=r"scale: .*; accepted: None or a number"):
        ff.ops.varlen_attention(*problem([27]), [27], scale)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: None, "q: NoneType; accepted: a tensor"),
        (1, lambda x: x.tolist(), "k: list; accepted: a tensor"),
        (1, lambda x: x[:26], r"k: shape \(26, 3, 16\); accepted: as q, \(27, 3, 16\)"),
        (2, lambda x: x[:, :2], r"v: shape \(27, 2, 16\)"),
        (2, lambda x: x.bfloat16(), r"v: torch\.bfloat16 on .*; accepted: as q, torch\.float32"),
        (0, lambda x: x.to("meta"), "k: .*; accepted: as q, torch.float32 on meta"),
        (0, lambda x: x.long(), r"q: dtype torch\.int64; accepted: float32"),
        (1, lambda x: x > 0, r"k: dtype torch\.bool"),
        (2, lambda x: x.to(torch.complex64), r"v: dtype torch\.complex64"),
        (0, lambda x: x[..., :0], r"q: shape \(27, 3, 0\); accepted: .* at least one head"),
        (0, lambda x: x[:, :0], r"q: shape \(27, 0, 16\)"),
        (0, lambda x: x[0], r"q: shape \(3, 16\); accepted: \[tokens, heads, head_dim\]"),
    ],
)
def test_tensors_that_do_not_match_are_refused(position, change, message):
    qkv = [x.detach() for x in problem([27])]
    qkv[position] = change(qkv[position])
    with pytest.raises(InputError, match=message):
        ff.ops.varlen_attention(*qkv, [27])


@pytest.mark.parametrize("shape", [(27, 2, 4, 16), (27, 48), (27, 3, 4, 0)])
def test_a_tensor_that_is_no_projection_is_refused(shape):
    with pytest.raises(InputError, match=r"qkv: shape .*; accepted: \[tokens, 3, heads, head_dim"):
        ff.ops.varlen_attention_qkv(torch.randn(shape), [27])
