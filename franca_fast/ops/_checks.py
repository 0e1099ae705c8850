"""Argument checks shared by the operators: errors name argument, value and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from franca_fast.errors import InputError

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_matrices(name: str, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """A matrix or a sequence of matrices as a list of floating 2-D tensors, all of one kind."""
    matrices = [value] if isinstance(value, Tensor) else list(value)
    if not matrices:
        raise InputError(f"{name}: empty sequence; accepted: at least one matrix")
    first = matrices[0]
    for i, m in enumerate(matrices):
        if not isinstance(m, Tensor):
            raise InputError(f"{name}[{i}]: {type(m).__name__}; accepted: a tensor [rows, columns]")
        if m.dim() != 2:
            raise InputError(f"{name}[{i}]: shape {tuple(m.shape)}; accepted: [rows, columns]")
        if m.dtype not in FLOATING:
            raise InputError(f"{name}[{i}]: dtype {m.dtype}; accepted: {_dtype_names()}")
        if m.dtype != first.dtype or m.device != first.device:
            raise InputError(
                f"{name}[{i}]: {m.dtype} on {m.device} beside {first.dtype} on {first.device}; "
                f"accepted: one dtype and one device"
            )
    return matrices


def same_rows(name: str, matrices: list[Tensor]) -> None:
    """All heads must have the same number of rows and at least one column."""
    rows = matrices[0].shape[0]
    for i, m in enumerate(matrices):
        if m.shape[0] != rows:
            raise InputError(
                f"{name}[{i}]: {m.shape[0]} rows beside {rows} in {name}[0]; "
                f"accepted: the same number of rows in every head"
            )
        if m.shape[1] < 1:
            raise InputError(f"{name}[{i}]: shape {tuple(m.shape)}; accepted: at least one column")


def same_columns(name: str, matrices: list[Tensor], other_name: str, others: list[Tensor]) -> None:
    """Two lists of heads must agree in number and in columns."""
    columns, expected = [m.shape[1] for m in matrices], [m.shape[1] for m in others]
    if columns != expected:
        raise InputError(
            f"{name}: columns {columns} beside {expected} in {other_name}; accepted: the same"
        )


def same_kind(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Two tensors must have one dtype and one device."""
    if tensor.dtype != other.dtype or tensor.device != other.device:
        raise InputError(
            f"{name}: {tensor.dtype} on {tensor.device}; "
            f"accepted: as {other_name}, {other.dtype} on {other.device}"
        )


def scales(name: str, factors: list[Tensor], prototypes: list[Tensor]) -> None:
    """One factor for each prototype, floating, on its device."""
    for i, (s, m) in enumerate(zip(factors, prototypes, strict=False)):
        if not isinstance(s, Tensor) or s.dtype not in FLOATING or s.device != m.device:
            kind = f"{s.dtype} on {s.device}" if isinstance(s, Tensor) else type(s).__name__
            raise InputError(
                f"{name}[{i}]: {kind}; accepted: a tensor of {_dtype_names()} on {m.device}"
            )
    if [s.shape for s in factors] != [m.shape[:1] for m in prototypes]:
        raise InputError(
            f"{name}: shapes {[tuple(s.shape) for s in factors]}; "
            f"accepted: {[tuple(m.shape[:1]) for m in prototypes]}"
        )


def temperature(name: str, value: float) -> float:
    """A temperature whose inverse is an ordinary float32 on every backend."""
    value = float(value)
    if not 1e-6 <= value <= 1e6:
        raise InputError(f"{name}: {value}; accepted: a number from 1e-6 to 1e6")
    return value


def iterations(value: int) -> int:
    """At least one Sinkhorn-Knopp iteration."""
    if not isinstance(value, int) or value < 1:
        raise InputError(f"n_iterations: {value!r}; accepted: an integer >= 1")
    return value


def valid_rows(value: int | None, n_rows: int) -> int:
    """Number of rows that take part: all of them, or the first `value`."""
    if value is None:
        return n_rows
    if not isinstance(value, (int, torch.SymInt)) or not 0 <= value <= n_rows:
        raise InputError(f"n_valid: {value!r}; accepted: an integer from 0 to {n_rows} (the rows)")
    return value


def _dtype_names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
