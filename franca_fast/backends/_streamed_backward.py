"""Backward pass of the streamed clustering loss on a GPU, for every backend with its own kernels.

The gradient of the products <x, v> exists one chunk of prototypes of one head at a time, in a
buffer whose size depends neither on the number of rows nor on that of prototypes, and enters two
matrix products of the library.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor

from franca_fast.backends.contracts import Scores

CHUNK_ELEMENTS = 1 << 26  # of the gradient of the scores: 128 MiB in 16 bits


class ProductGradient(Protocol):
    """The kernel."""

    def __call__(self, head: int, columns: slice, dscale: Tensor) -> Tensor:
        """Gradients for K' neighbouring prototypes of one head.

        Args:
            head: Its index.
            columns: Which prototypes of the head.
            dscale: Where the gradient of their scales goes, [K'] float32.

        Returns:
            The gradient of the products <x, v>, [M, K'] in the dtype of the features. The next call
            may use its memory again.
        """


def padded(width: int) -> int:
    """Elements of 16 bits from a row to the next one, which begin on 16 bytes for the library."""
    return -(-width // 8) * 8


def chunk_columns(n_rows: int, block_columns: int) -> int:
    """Prototypes of one chunk, a multiple of `block_columns`."""
    return max(1, CHUNK_ELEMENTS // (max(1, n_rows) * block_columns)) * block_columns


def backward(student: Scores, block_columns: int, product_gradient: ProductGradient) -> Scores:
    """Gradients of the student's features, prototypes and scales.

    Args:
        student: Streamed scores.
        block_columns: Chunks are multiples of so many prototypes.
        product_gradient: The kernel.
    """
    gradients = [
        _head_backward(h, *factors, block_columns, product_gradient)
        for h, factors in enumerate(zip(*student, strict=True))
    ]
    dfeatures, dprototypes, dscales = (list(parts) for parts in zip(*gradients, strict=True))
    return Scores(dfeatures, dprototypes, dscales)


def _head_backward(
    head: int,
    x: Tensor,
    v: Tensor,
    scale: Tensor,
    block_columns: int,
    product_gradient: ProductGradient,
) -> tuple[Tensor, Tensor, Tensor]:
    (n_rows, _), n_columns = x.shape, v.shape[0]
    dx = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    dv, dscale = v.new_empty(v.shape), scale.new_empty(scale.shape)
    if n_rows == 0:
        return dx.to(x.dtype), dv.zero_(), dscale.zero_()
    width = chunk_columns(n_rows, block_columns)
    for start in range(0, n_columns, width):
        part = slice(start, min(start + width, n_columns))
        products = product_gradient(head, part, dscale[part])
        _add_product(dx, products, v[part])
        torch.mm(products.t(), x, out=dv[part])
    return dx.to(x.dtype), dv, dscale


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds the product of two matrices to a float32 one, where possible without rounding it."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    elif _adds_to_float32(a.dtype, a.device.type):
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        out += a @ b


@functools.cache
def _adds_to_float32(dtype: torch.dtype, device: str) -> bool:
    """Whether addmm of this PyTorch takes 16-bit factors and adds to a float32 matrix."""
    factor = torch.zeros(8, 8, dtype=dtype, device=device)
    total = torch.zeros(8, 8, dtype=torch.float32, device=device)
    try:
        torch.addmm(total, factor, factor, out_dtype=total.dtype, out=total)
    except (TypeError, RuntimeError):  # no such argument, or not for this device or mix of types
        return False
    return True
