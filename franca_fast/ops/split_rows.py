"""Parts of the rows of a matrix, whose gradients need not be put together by copying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from franca_fast.backends.contracts import Scores
from franca_fast.errors import InputError
from franca_fast.ops import _checks


@overload
def split_rows(matrix: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]: ...
@overload
def split_rows(matrix: Scores, sizes: Sequence[int]) -> tuple[Scores, ...]: ...
def split_rows(
    matrix: Tensor | Scores, sizes: Sequence[int]
) -> tuple[Tensor, ...] | tuple[Scores, ...]:
    """`matrix.split(sizes)`, for parts that go into losses that overwrite them.

    The gradient of `split` copies the gradients of all parts into one matrix. Where they already
    lie one after the other, as they do when each was written over its part, this takes them as
    they are.

    Args:
        matrix: [N, K], or `Scores` of N rows.
        sizes: Rows of each part; they sum to N.

    Returns:
        The parts, [sizes[i], K], or `Scores` that share their prototypes. They share the memory of
        what they are parts of and must not be changed; a loss may overwrite them, after which
        autograd refuses whatever else needs them or the whole.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch
        >>> from franca_fast.ops import split_rows
        >>> [tuple(part.shape) for part in split_rows(torch.zeros(5, 2), [2, 3])]
        [(2, 2), (3, 2)]
    """
    if isinstance(matrix, Scores):
        heads = zip(*(_split(z, sizes) for z in matrix.values), strict=True)
        return tuple(matrix._replace(values=values) for values in heads)
    return _split(matrix, sizes)


def _split(matrix: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    _checks.as_tensor("matrix", matrix, "a tensor [rows, columns], or Scores")
    _checks.as_matrices("matrix", matrix)
    accepted = f"whole numbers >= 0 that sum to the {matrix.shape[0]} rows"
    if not isinstance(sizes, Sequence) or any(type(size) is not int for size in sizes):
        raise InputError(f"sizes: {sizes!r}; accepted: {accepted}")
    if not sizes or min(sizes) < 0 or sum(sizes) != matrix.shape[0]:
        raise InputError(f"sizes: {list(sizes)}; accepted: {accepted}")
    parts: tuple[Tensor, ...] = _SplitRows.apply(matrix, list(sizes))
    for part in parts:
        part._split_from = matrix  # type: ignore[attr-defined]
    return parts


def origin_of(part: Tensor) -> Tensor:
    """The matrix that a tensor is a part of by `split_rows`, or the tensor itself."""
    origin: Tensor = getattr(part, "_split_from", part)
    return origin


def are_free(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether autograd notices every later use of tensors that a backward pass overwrites.

    That is so for results that share memory with nothing but parts by `split_rows`.
    """
    # Tensors that only trace a computation cannot be written to.
    if torch.compiler.is_compiling() or any(type(tensor) is not Tensor for tensor in tensors):
        return False
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    foreign = {other.untyped_storage().data_ptr() for other in others}
    return (
        len(own) == len(tensors)
        and own.isdisjoint(foreign)
        and all(t.requires_grad and t.is_contiguous() for t in tensors)
        and not any(origin_of(tensor)._is_view() for tensor in tensors)
    )


class _SplitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        # As tensors with a record of changes of their own: that of views is common to all parts,
        # so that a part could not be overwritten while another one is still needed.
        return tuple(part.data for part in matrix.detach().split(sizes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Gradients that are to be differentiated again need a graph.
        joined = torch.cat(gradients) if torch.is_grad_enabled() else _joined(gradients)
        return joined, None


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
