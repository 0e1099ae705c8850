"""Argument checks shared by the operators: errors name argument, value and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor

from franca_fast.backends.contracts import Scores, ScoresLike, potential_dtype
from franca_fast.errors import InputError

# Numbers that torch.compile traces are no Python numbers.
_WHOLE: tuple[type, ...] = (int, torch.SymInt)
_NUMBERS: tuple[type, ...] = (Real, torch.SymFloat, torch.SymInt)
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    """Whether there may be one entry for each head; quick to tell of what it mostly is."""
    if isinstance(value, (tuple, list)):
        return True
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def as_tensors(name: str, value: object, each: str) -> list[Tensor]:
    """A sequence of tensors as a list; `each` says what is accepted of each."""
    if not is_sequence(value):
        raise InputError(f"{name}: {described(value)}; accepted: for each head, {each}")
    tensors = []
    for i, tensor in enumerate(value):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}[{i}]: {described(tensor)}; accepted: {each}")
        tensors.append(tensor)
    return tensors


def as_tensor(name: str, value: object, accepted: str) -> Tensor:
    """A tensor, and nothing that might be made one."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: {described(value)}; accepted: {accepted}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}: {described(value)}; accepted: True or False")
    return value


def as_matrices(name: str, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """A matrix or a sequence of matrices as a list of floating 2-D tensors, all of one kind."""
    if isinstance(value, Tensor):
        return _matrices(name, [value])
    return matrices_of_heads(name, value)


def matrices_of_heads(name: str, value: Sequence[Tensor]) -> list[Tensor]:
    """The same, of a sequence: where one tensor for all heads would be ambiguous."""
    return _matrices(name, as_tensors(name, value, "a tensor [rows, columns]"))


def _matrices(name: str, matrices: list[Tensor]) -> list[Tensor]:
    if not matrices:
        raise InputError(f"{name}: empty sequence; accepted: at least one matrix")
    dtype, device = matrices[0].dtype, matrices[0].device
    for i, m in enumerate(matrices):
        if m.dim() != 2 or m.layout is not torch.strided:
            raise InputError(
                f"{name}[{i}]: {described(m)}; accepted: a dense tensor [rows, columns]"
            )
        if m.dtype not in FLOATING:
            raise InputError(f"{name}[{i}]: dtype {m.dtype}; accepted: {_dtype_names()}")
        if i and (m.dtype != dtype or m.device != device):
            raise InputError(
                f"{name}[{i}]: {m.dtype} on {m.device} beside {dtype} on {device}; "
                f"accepted: one dtype and one device"
            )
    return matrices


def same_rows(name: str, matrices: list[Tensor]) -> None:
    """All heads must have the same number of rows and at least one column."""
    rows = matrices[0].shape[0]
    for i, m in enumerate(matrices):
        n, columns = m.shape
        if n != rows:
            raise InputError(
                f"{name}[{i}]: {n} rows beside {rows} in {name}[0]; "
                f"accepted: the same number of rows in every head"
            )
        if columns < 1:
            raise InputError(f"{name}[{i}]: shape {tuple(m.shape)}; accepted: at least one column")


def same_columns(name: str, matrices: list[Tensor], other_name: str, others: list[Tensor]) -> None:
    """Two lists of heads must agree in number and in columns."""
    columns, expected = [m.shape[1] for m in matrices], [m.shape[1] for m in others]
    if columns != expected:
        raise InputError(
            f"{name}: columns {columns} beside {expected} in {other_name}; accepted: the same"
        )


def potentials(
    name: str, given: list[Tensor], shapes: list[tuple[int, ...]], scores: Tensor
) -> None:
    """One vector for each head, of the dtype and device that go with the scores."""
    dtype = potential_dtype(scores)
    if [a.shape for a in given] != shapes:
        raise InputError(f"{name}: shapes {[tuple(a.shape) for a in given]}; accepted: {shapes}")
    for i, a in enumerate(given):
        if a.dtype != dtype or a.device != scores.device:
            raise InputError(
                f"{name}[{i}]: {a.dtype} on {a.device}; accepted: {dtype} on {scores.device}"
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


def scores(name: str, given: ScoresLike) -> Scores:
    """Scores of all heads in any form that operators take."""
    if not isinstance(given, Scores):
        stored = as_matrices(name, given)
        same_rows(name, stored)
        return Scores(stored)
    if _is_empty(given.prototypes) and _is_empty(given.scales):
        values = matrices_of_heads(f"{name}.values", given.values)
        same_rows(f"{name}.values", values)
        return Scores(values)
    features = matrices_of_heads(f"{name}.values", given.values)
    prototypes = matrices_of_heads(f"{name}.prototypes", given.prototypes)
    same_rows(f"{name}.values", features)
    same_columns(f"{name}.prototypes", prototypes, f"{name}.values", features)
    factors = as_tensors(f"{name}.scales", given.scales, "a tensor [K_i]")
    scales(f"{name}.scales", factors, prototypes)
    same_kind(f"{name}.prototypes", prototypes[0], f"{name}.values", features[0])
    return Scores(features, prototypes, factors)


def _is_empty(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 0  # torch.compile cannot trace `not`


def temperature(name: str, value: float) -> float:
    """A temperature whose inverse is an ordinary float32 on every backend."""
    accepted = "a number from 1e-6 to 1e6"
    number = value if type(value) is float else real_number(name, value, accepted)
    if not 1e-6 <= number <= 1e6:
        raise InputError(f"{name}: {number}; accepted: {accepted}")
    return number


def real_number(name: str, value: Any, accepted: str) -> float:
    """A number, not a tensor: reading one would stall the device."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise InputError(f"{name}: {described(value)}; accepted: {accepted}")
    return float(cast(Any, value))


def group_name(group: dist.ProcessGroup | None) -> str | None:
    """The name by which operators know a process group."""
    if group is None:
        return None
    name = getattr(group, "group_name", None)
    if not isinstance(name, str):
        raise InputError(
            f"group: {described(group)}; accepted: a torch.distributed process group, or None"
        )
    return name


def iterations(value: int) -> int:
    """At least one Sinkhorn-Knopp iteration."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"n_iterations: {value!r}; accepted: an integer >= 1")
    return value


def valid_rows(value: int | None, n_rows: int) -> int:
    """Number of rows that take part: all of them, or the first `value`."""
    if value is None:
        return n_rows
    whole = isinstance(value, _WHOLE) and not isinstance(value, bool)
    if not whole or not 0 <= value <= n_rows:
        raise InputError(f"n_valid: {value!r}; accepted: an integer from 0 to {n_rows} (the rows)")
    return value


def described(value: object) -> str:
    """A value as error messages name it."""
    if isinstance(value, Tensor):
        kind = "" if value.layout is torch.strided else f", {value.layout}"
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype} on {value.device}{kind}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"


def _dtype_names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
