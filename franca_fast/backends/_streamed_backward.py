"""Backward pass of the streamed clustering loss on a GPU, for every backend with its own kernels.

The gradient of the products <x, v> exists one chunk of prototypes of one head at a time, in a
buffer whose size depends neither on the number of rows nor on that of prototypes, and enters two
matrix products of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

# Features [N, C], prototypes [K, C] and float32 scales [K], one entry of each for each head.
Side: TypeAlias = tuple[list[Tensor], list[Tensor], list[Tensor]]
Gradients: TypeAlias = tuple[list[Tensor], list[Tensor], list[Tensor]]

CHUNK_ELEMENTS = 1 << 24  # of the gradient of the scores: 32 MiB in 16 bits


class Chunk(NamedTuple):
    """Some prototypes K' of one head.

    Attributes:
        student: Features [M, C], prototypes [K', C] and scales [K'].
        teacher: The same of the teacher, with its own rows [N].
        prototype: Potentials [K'].
        row: Potentials [N].
        lse: Log-sum-exp of the student rows over the whole head, [M].
        grad_loss: Gradient of this head's loss, [1].
    """

    student: tuple[Tensor, Tensor, Tensor]
    teacher: tuple[Tensor, Tensor, Tensor]
    prototype: Tensor
    row: Tensor
    lse: Tensor
    grad_loss: Tensor


# Gives the gradient of the products <x, v>, [M, K'] in the dtype of the features, and that of the
# scales as parts to be summed, [parts, K'] float32.
ProductGradient: TypeAlias = Callable[[Chunk], tuple[Tensor, Tensor]]


def backward(
    grad_loss: Tensor,
    student: Side,
    teacher: Side,
    prototype: Tensor,
    row: Tensor,
    lse: Tensor,
    block_columns: int,
    product_gradient: ProductGradient,
) -> Gradients:
    """Gradients of the student's features, prototypes and scales.

    Args:
        grad_loss: [H].
        student: Factors of the student's scores.
        teacher: Factors of the teacher's scores.
        prototype: Potentials [sum K].
        row: Potentials [H, N].
        lse: Log-sum-exp of the student rows [H, M].
        block_columns: Chunks are multiples of so many prototypes.
        product_gradient: The kernel.
    """
    potentials = prototype.contiguous().split([v.shape[0] for v in student[1]])
    heads = zip(zip(*student, strict=True), zip(*teacher, strict=True), potentials, strict=True)
    gradients = [
        _head_backward(
            Chunk(own, other, potential, row[h].contiguous(), lse[h].contiguous(), grad),
            block_columns,
            product_gradient,
        )
        for h, ((own, other, potential), grad) in enumerate(
            zip(heads, grad_loss.float().split(1), strict=True)
        )
    ]
    dfeatures, dprototypes, dscales = (list(parts) for parts in zip(*gradients, strict=True))
    return dfeatures, dprototypes, dscales


def _head_backward(
    head: Chunk, block_columns: int, product_gradient: ProductGradient
) -> tuple[Tensor, Tensor, Tensor]:
    (x, v, scale), (n_rows, n_columns) = head.student, (head.lse.shape[0], head.prototype.shape[0])
    dx = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    dv, dscale = v.new_empty(v.shape), scale.new_empty(scale.shape)
    if n_rows == 0:
        return dx.to(x.dtype), dv.zero_(), dscale.zero_()
    width = max(1, CHUNK_ELEMENTS // (n_rows * block_columns)) * block_columns
    for start in range(0, n_columns, width):
        part = slice(start, min(start + width, n_columns))
        chunk = head._replace(
            student=(x, v[part], scale[part]),
            teacher=(head.teacher[0], head.teacher[1][part], head.teacher[2][part]),
            prototype=head.prototype[part],
        )
        products, scale_parts = product_gradient(chunk)
        dx += products @ v[part]
        torch.mm(products.t(), x, out=dv[part])
        torch.sum(scale_parts, dim=0, out=dscale[part])
    return dx.to(x.dtype), dv, dscale
