"""SwiGLU's product as Triton kernels: a program takes a piece of one row."""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from franca_fast.backends.triton._heads import on_device_of, pack

_BLOCK = 1024  # elements of a program


def forward(h: Tensor) -> Tensor:
    (rows,), (stride,), _ = pack([h.reshape(-1, h.shape[-1])])
    width = h.shape[-1] // 2
    out = h.new_empty((*h.shape[:-1], width))
    if out.numel():
        block = min(_BLOCK, triton.next_power_of_2(width))
        with on_device_of(h):
            _forward_kernel[(rows.shape[0], triton.cdiv(width, block))](
                rows, stride, out, width, BLOCK=block
            )
    return out


def backward(grad: Tensor, h: Tensor) -> Tensor:
    (rows,), (stride,), _ = pack([h.reshape(-1, h.shape[-1])])
    (dout,), (dout_stride,), (width,) = pack([grad.reshape(-1, grad.shape[-1])])
    gradient = h.new_empty(h.shape)
    if gradient.numel():
        block = min(_BLOCK, triton.next_power_of_2(width))
        with on_device_of(h):
            _backward_kernel[(rows.shape[0], triton.cdiv(width, block))](
                rows, stride, dout, dout_stride, gradient, width, BLOCK=block
            )
    return gradient


@triton.jit
def _sigmoid(g):
    """The sigmoid and what it lacks of 1, without an exponential that could overflow."""
    e = tl.exp(-tl.abs(g))
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    return tl.where(g < 0, smaller, larger), tl.where(g < 0, larger, smaller)


@triton.jit
def _forward_kernel(h, stride, out, width, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < width
    g = tl.load(h + n * stride + c, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(h + n * stride + width + c, mask=inside, other=0.0).to(tl.float32)
    s, _ = _sigmoid(g)
    tl.store(out + n * width + c, g * s * v, mask=inside)


@triton.jit
def _backward_kernel(h, stride, dout, dout_stride, dh, width, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < width
    g = tl.load(h + n * stride + c, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(h + n * stride + width + c, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(dout + n * dout_stride + c, mask=inside, other=0.0).to(tl.float32)
    s, lack = _sigmoid(g)
    silu = g * s
    dgate = (s + silu * lack) * v * d
    tl.store(dh + n * 2 * width + c, dgate, mask=inside)
    tl.store(dh + n * 2 * width + width + c, silu * d, mask=inside)
