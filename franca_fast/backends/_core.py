"""Tensors as the compiled core sees them: addresses, sizes and codes, after all checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends.cpu import DTYPE_CODES
from franca_fast.errors import InputError


class Heads(NamedTuple):
    """Logits of all heads.

    Attributes:
        numbers: Address, columns and row stride of each head, one after the other.
        n_rows: Rows of every head.
        dtype: Code of the dtype.
        columns: Columns of each head.
        tensors: What the addresses point into; to be kept until the kernel has returned.
    """

    numbers: list[int]
    n_rows: int
    dtype: int
    columns: list[int]
    tensors: list[Tensor]


CPU = torch.device("cpu")


def pack_heads(logits: Sequence[Tensor], name: str, device: torch.device = CPU) -> Heads:
    """Checks logits [N, K_i] of one dtype on `device` and lays them out for the core.

    Rows may have any distance. Logits whose columns are not adjacent are copied.

    Raises:
        InputError: If shapes, dtypes or devices do not fit together.
    """
    if not logits:
        raise InputError(f"{name}: at least one head is needed, got none")
    reference = logits[0]
    dtype = reference.dtype
    if dtype not in DTYPE_CODES:
        raise InputError(f"{name}: dtype {dtype} is not one of float32, bfloat16, float16")
    n_rows = reference.shape[0] if reference.dim() else 0
    numbers: list[int] = []
    columns: list[int] = []
    tensors: list[Tensor] = []
    for z in logits:
        shape = z.shape
        if len(shape) != 2 or shape[0] != n_rows or z.dtype is not dtype or z.device != device:
            raise InputError(
                f"{name}[{len(columns)}]: expected a {dtype} tensor of shape [{n_rows}, K] on "
                f"{device}, got {z.dtype} on {z.device} of shape {list(shape)}"
            )
        width = shape[1]
        row_stride, column_stride = z.stride()
        if column_stride != 1 and width > 1:
            z = z.contiguous()
            row_stride = width
        numbers += (z.data_ptr(), width, row_stride)
        columns.append(width)
        tensors.append(z)
    return Heads(numbers, n_rows, DTYPE_CODES[dtype], columns, tensors)


def places(out: Sequence[Tensor], student: Heads, device: torch.device = CPU) -> list[int]:
    """Where gradients of the student logits go, as the core takes it.

    Raises:
        InputError: If they have other shapes, another dtype or device, or columns apart.
    """
    heads = pack_heads(out, "out", device)
    if (heads.columns, heads.n_rows, heads.dtype) != (
        student.columns,
        student.n_rows,
        student.dtype,
    ):
        raise InputError("out: expected the shapes and dtype of the student logits")
    if any(packed is not given for packed, given in zip(heads.tensors, out, strict=True)):
        raise InputError("out: the columns of each gradient must be adjacent")
    return heads.numbers


def vector(
    tensor: Tensor,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> Tensor:
    """Checks a small input and returns it contiguous.

    Raises:
        InputError: If the shape, dtype or device is another one.
    """
    if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device:
        raise InputError(
            f"{name}: expected a {dtype} tensor of shape {list(shape)} on {device}, "
            f"got {tensor.dtype} on {tensor.device} of shape {list(tensor.shape)}"
        )
    return tensor.contiguous()


# From here on, memory comes fresh from the operating system each time.
_LARGE_BYTES = 4 << 20


def matrix(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """A new CPU matrix for a kernel to fill, in huge pages where it is large."""
    out = torch.empty(rows, columns, dtype=dtype)
    if out.nbytes >= _LARGE_BYTES:
        _C.prefer_huge_pages(out.data_ptr(), out.nbytes)
    return out
