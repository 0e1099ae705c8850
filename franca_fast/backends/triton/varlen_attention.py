"""Attention over packed sequences as Triton kernels, with tiles as long as the sequences.

One launch covers a run of sequences of equal length. As in the compiled kernels, dQ and (dK, dV)
are sums of two kernels that both rebuild the probabilities, so nothing is added atomically.
"""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from franca_fast.backends import _fused_attention
from franca_fast.backends._fused_attention import runs_on_gpu
from franca_fast.backends.contracts import AttentionProblem
from franca_fast.backends.torch.varlen_attention import Run
from franca_fast.backends.triton import interpreted
from franca_fast.backends.triton._heads import on_device_of

INTERPRETED = tl.constexpr(interpreted())
LOG2E = tl.constexpr(1.44269504)
LN2 = tl.constexpr(0.693147181)


@triton.jit
def load_rows(base, token_stride, tokens, inside, DIM: tl.constexpr):
    """Rows of a head, [tokens, DIM]; zero outside."""
    at = tokens.to(tl.int64)[:, None] * token_stride + tl.arange(0, DIM)[None, :]
    return tl.load(base + at, mask=inside[:, None], other=0.0)


@triton.jit
def product(left, right):
    """The matrix product in float32."""
    if INTERPRETED:  # the interpreter multiplies the bits of bfloat16 as integers
        return tl.dot(left.to(tl.float32), right.to(tl.float32))
    return tl.dot(left, right)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Float32 in 16 bits, rounded to nearest."""
    if INTERPRETED and dtype == tl.bfloat16:  # which the interpreter cuts off instead
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def store_rows(base, token_stride, tokens, inside, rows, DIM: tl.constexpr):
    """Stores [tokens, DIM] in the type of the memory."""
    at = tokens.to(tl.int64)[:, None] * token_stride + tl.arange(0, DIM)[None, :]
    tl.store(base + at, narrow(rows, base.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["first_token", "length"])
def forward_kernel(
    q,
    k,
    v,
    out,
    lse,  # [tokens, heads]
    q_strides,  # of token and head, as for the others
    k_strides,
    v_strides,
    out_strides,
    first_token,
    length,
    n_heads,
    scale,  # times log2(e)
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Output softmax(scale q k^T) v for ROWS queries of a sequence and head."""
    head = tl.program_id(1)
    begin = first_token + tl.program_id(2).to(tl.int64) * length
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = rows < length
    q_rows = load_rows(q + head * q_strides[1], q_strides[0], begin + rows, valid, DIM)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < length
        k_rows = load_rows(k + head * k_strides[1], k_strides[0], begin + columns, inside, DIM)
        v_rows = load_rows(v + head * v_strides[1], v_strides[0], begin + columns, inside, DIM)
        scores = product(q_rows, tl.trans(k_rows)) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        factor = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(scores - new_maximum[:, None])
        total = total * factor + tl.sum(weights, 1)
        sums = sums * factor[:, None] + product(narrow(weights, v_rows.dtype), v_rows)
        maximum = new_maximum
    store_rows(
        out + head * out_strides[1], out_strides[0], begin + rows, valid, sums / total[:, None], DIM
    )
    tl.store(lse + (begin + rows) * n_heads + head, maximum * LN2 + tl.log(total), mask=valid)


@triton.jit(do_not_specialize=["first_token", "length"])
def query_gradient_kernel(
    q,
    k,
    v,
    out,
    grad_out,
    dq,
    lse,  # [tokens, heads]
    delta,  # [tokens, heads], written: rowsum(grad_out * out)
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    grad_strides,
    dq_strides,
    first_token,
    length,
    n_heads,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Gradient dQ for ROWS queries of a sequence and head, and their delta."""
    head = tl.program_id(1)
    begin = first_token + tl.program_id(2).to(tl.int64) * length
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = rows < length
    tokens = begin + rows
    q_rows = load_rows(q + head * q_strides[1], q_strides[0], tokens, valid, DIM)
    grads = load_rows(grad_out + head * grad_strides[1], grad_strides[0], tokens, valid, DIM)
    outs = load_rows(out + head * out_strides[1], out_strides[0], tokens, valid, DIM)
    row_delta = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + tokens * n_heads + head, row_delta, mask=valid)
    row_lse = tl.load(lse + tokens * n_heads + head, mask=valid, other=0.0) * LOG2E
    sums = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < length
        k_rows = load_rows(k + head * k_strides[1], k_strides[0], begin + columns, inside, DIM)
        v_rows = load_rows(v + head * v_strides[1], v_strides[0], begin + columns, inside, DIM)
        scores = product(q_rows, tl.trans(k_rows)) * (scale * LOG2E)
        # Infinite where neither a row nor a column is: the mask comes before the exponential.
        shifted = tl.where(inside[None, :], scores - row_lse[:, None], float("-inf"))
        ds = tl.exp2(shifted) * (product(grads, tl.trans(v_rows)) - row_delta[:, None])
        sums += product(narrow(ds, k_rows.dtype), k_rows)
    store_rows(dq + head * dq_strides[1], dq_strides[0], tokens, valid, sums * scale, DIM)


@triton.jit(do_not_specialize=["first_token", "length"])
def key_gradient_kernel(
    q,
    k,
    v,
    grad_out,
    dk,
    dv,
    lse,  # [tokens, heads]
    delta,  # [tokens, heads]
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    dk_strides,
    dv_strides,
    first_token,
    length,
    n_heads,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Gradients dK and dV for ROWS keys of a sequence and head."""
    head = tl.program_id(1)
    begin = first_token + tl.program_id(2).to(tl.int64) * length
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # keys
    valid = rows < length
    tokens = begin + rows
    k_rows = load_rows(k + head * k_strides[1], k_strides[0], tokens, valid, DIM)
    v_rows = load_rows(v + head * v_strides[1], v_strides[0], tokens, valid, DIM)
    k_sums = tl.zeros([ROWS, DIM], tl.float32)
    v_sums = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)  # queries
        inside = columns < length
        queries = begin + columns
        q_rows = load_rows(q + head * q_strides[1], q_strides[0], queries, inside, DIM)
        grads = load_rows(grad_out + head * grad_strides[1], grad_strides[0], queries, inside, DIM)
        at = queries * n_heads + head
        # An infinite log-sum-exp makes the probabilities of queries outside zero.
        query_lse = tl.load(lse + at, mask=inside, other=float("inf")) * LOG2E
        query_delta = tl.load(delta + at, mask=inside, other=0.0)
        scores = product(k_rows, tl.trans(q_rows)) * (scale * LOG2E)
        weights = tl.exp2(scores - query_lse[None, :])
        ds = weights * (product(v_rows, tl.trans(grads)) - query_delta[None, :])
        v_sums += product(narrow(weights, grads.dtype), grads)
        k_sums += product(narrow(ds, q_rows.dtype), q_rows)
    store_rows(dk + head * dk_strides[1], dk_strides[0], tokens, valid, k_sums * scale, DIM)
    store_rows(dv + head * dv_strides[1], dv_strides[0], tokens, valid, v_sums, DIM)


def forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    return _fused_attention.forward(_forward, runs_on_gpu(problem, "triton"), problem)


def backward(
    problem: AttentionProblem,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    own = runs_on_gpu(problem, "triton")
    _fused_attention.backward(_backward, own, problem, (grad_out, out, lse), gradients)


def _strides(*tensors: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((x.stride(0), x.stride(1)) for x in tensors)


def _tile(length: int, longest: int) -> int:
    """A power of two from 16 on that holds the length, or `longest`."""
    return min(longest, max(16, triton.next_power_of_2(length)))


def _launch(kernel: Any, like: Tensor, run: Run, arguments: tuple[Any, ...]) -> None:
    heads, dim = like.shape[1:]
    rows, columns = _tile(run.length, 64), _tile(run.length, 64 if dim == 64 else 32)
    # Sequences of a run come last among the programs, of which that dimension takes 65535.
    for first in range(0, run.n_sequences, 65535):
        count = min(65535, run.n_sequences - first)
        grid = (triton.cdiv(run.length, rows), heads, count)
        start = run.start + first * run.length
        scale = arguments[-1]
        kernel[grid](
            *arguments[:-1],
            start,
            run.length,
            heads,
            scale,
            ROWS=rows,
            COLUMNS=columns,
            DIM=dim,
            num_warps=4,
        )


def _forward(problem: AttentionProblem, runs: tuple[Run, ...], out: Tensor, lse: Tensor) -> None:
    q, k, v, _, scale = problem
    arguments = (q, k, v, out, lse, *_strides(q, k, v, out), scale * LOG2E.value)
    with on_device_of(q):
        for run in runs:
            _launch(forward_kernel, q, run, arguments)


def _backward(
    problem: AttentionProblem,
    runs: tuple[Run, ...],
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    q, k, v, _, scale = problem
    dq, dk, dv = gradients
    delta = torch.empty_like(lse)
    query = (q, k, v, out, grad_out, dq, lse, delta, *_strides(q, k, v, out, grad_out, dq), scale)
    key = (q, k, v, grad_out, dk, dv, lse, delta, *_strides(q, k, v, grad_out, dk, dv), scale)
    with on_device_of(q):
        for run in runs:
            _launch(query_gradient_kernel, q, run, query)
            _launch(key_gradient_kernel, q, run, key)
