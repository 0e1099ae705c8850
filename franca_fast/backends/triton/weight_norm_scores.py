"""Weight-normalised prototypes as Triton kernels, between products of the library."""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from franca_fast.backends.torch.weight_norm_scores import forward, products
from franca_fast.backends.triton._heads import on_device_of, pack

__all__ = ["backward", "forward", "gradients", "normalized"]

# Prototypes of a program, and how much of them it holds at a time.
_ROWS, _COLUMNS = 8, 256


def normalized(v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    (rows,), (stride,), _ = pack([v])
    w = v.new_empty(v.shape, dtype=dtype)
    if w.numel():
        with on_device_of(v):
            _normalize_kernel[(triton.cdiv(v.shape[0], _ROWS),)](
                rows, stride, g.contiguous(), w, *v.shape, ROWS=_ROWS, COLUMNS=_COLUMNS
            )
    return w


def gradients(
    dprototypes: Tensor, dscales: Tensor | None, v: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    (rows,), (stride,), _ = pack([v])
    (dw,), (dw_stride,), _ = pack([dprototypes])
    dv, dg = v.new_empty(v.shape), g.new_empty(g.shape)
    if v.shape[0]:
        with on_device_of(v):
            _gradient_kernel[(triton.cdiv(v.shape[0], _ROWS),)](
                rows,
                stride,
                g.contiguous(),
                dw,
                dw_stride,
                g if dscales is None else dscales.contiguous(),
                dv,
                dg,
                *v.shape,
                GIVEN=dscales is not None,
                ROWS=_ROWS,
                COLUMNS=_COLUMNS,
            )
    return dv, dg


def backward(
    grad: Tensor, features: Tensor, v: Tensor, g: Tensor, given: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dw = products(grad, features, v, g, given)
    return dx, *gradients(dw, None, v, g)


@triton.jit
def _sums(v, v_stride, w, w_stride, k, valid, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """<v, v> and <v, w> of some rows."""
    square = tl.zeros((ROWS,), tl.float32)
    product = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (c < width)[None, :]
        x = tl.load(v + k[:, None] * v_stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
        u = tl.load(w + k[:, None] * w_stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
        square += tl.sum(x * x, 1)
        product += tl.sum(x * u, 1)
    return square, product


@triton.jit
def _normalize_kernel(v, v_stride, g, w, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    k = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = k < count
    square, _ = _sums(v, v_stride, v, v_stride, k, valid, width, ROWS, COLUMNS)
    scale = tl.load(g + k, mask=valid, other=0.0).to(tl.float32) / tl.sqrt(square)
    for start in range(0, width, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (c < width)[None, :]
        x = tl.load(v + k[:, None] * v_stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(w + k[:, None] * width + c[None, :], x * scale[:, None], mask=mask)


@triton.jit
def _gradient_kernel(
    v,
    v_stride,
    g,
    dw,
    dw_stride,
    dscales,
    dv,
    dg,
    count,
    width,
    GIVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    k = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = k < count
    square, product = _sums(v, v_stride, dw, dw_stride, k, valid, width, ROWS, COLUMNS)
    norm = tl.sqrt(square)
    scale = tl.load(g + k, mask=valid, other=0.0).to(tl.float32) / norm
    factor = scale
    if GIVEN:
        product = tl.load(dscales + k, mask=valid, other=0.0).to(tl.float32)
        factor = tl.full((ROWS,), 1.0, tl.float32)
    length = product / norm
    tl.store(dg + k, length, mask=valid)
    along = length * (scale / norm)
    for start in range(0, width, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (c < width)[None, :]
        x = tl.load(v + k[:, None] * v_stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
        u = tl.load(dw + k[:, None] * dw_stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
        gradient = factor[:, None] * u - along[:, None] * x
        tl.store(dv + k[:, None] * width + c[None, :], gradient, mask=mask)
