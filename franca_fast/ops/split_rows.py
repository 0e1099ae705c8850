"""Parts of the rows of a matrix, whose gradients need not be put together by copying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def split_rows(matrix: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`matrix.split(sizes)`, for parts that go into losses that overwrite them.

    The gradient of `split` copies the gradients of all parts into one matrix. Where they already
    lie one after the other, as they do when each was written over its part, this takes them as
    they are.

    Args:
        matrix: [N, K].
        sizes: Rows of each part; they sum to N.

    Returns:
        The parts, [sizes[i], K]. They share the memory of the matrix and must not be changed.

    Example:
        >>> import torch
        >>> from franca_fast.ops import split_rows
        >>> [tuple(part.shape) for part in split_rows(torch.zeros(5, 2), [2, 3])]
        [(2, 2), (3, 2)]
    """
    return _SplitRows.apply(matrix, list(sizes))


class _SplitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        return matrix.split(sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _joined(gradients), None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts below each other: as one view where they lie so, else as a copy."""
    if any(type(part) is not Tensor or not part.is_contiguous() for part in parts):
        return torch.cat(list(parts))
    first, end = parts[0], parts[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != storage:
            return torch.cat(list(parts))
        end += part.nbytes
    rows = sum(part.shape[0] for part in parts)
    return first.as_strided((rows, first.shape[1]), first.stride())
