"""The operators on CPU tensors in the compiled core, `franca_fast._C`."""

from __future__ import annotations

from torch import Tensor

from franca_fast.backends._core import _C, missing, unreadable
from franca_fast.errors import InputError


def unavailable(operator: str, tensor: Tensor) -> str | None:
    """Why the kernels cannot run `operator` on tensors like `tensor`, or None when they can."""
    reason = missing()
    if reason is not None:
        return reason
    if tensor.device.type == "cpu":
        _check_instruction_set()
    return unreadable(tensor, "cpu")


def _check_instruction_set() -> None:
    try:
        _C.cpu_isa()
    except ValueError as error:
        raise InputError(f"FRANCA_FAST_CPU_ISA: {error}") from None
