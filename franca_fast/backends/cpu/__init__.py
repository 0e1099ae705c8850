"""The operators in the compiled core, `franca_fast._C`, as backends "cpu" and "cuda".

The core knows nothing of torch: the modules here allocate results and workspaces and hand over
addresses and sizes.
"""

from __future__ import annotations

import warnings

import torch

from franca_fast.errors import InputError

try:
    from franca_fast import _C
except ImportError as error:
    _C = None
    _missing: str | None = f"the compiled core is not installed ({error})"
else:
    _missing = None

NAMES = ("cpu", "cuda")

# Codes of the dtypes that the kernels read, as in csrc/include/franca/views.hpp.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_warned = False


def unavailable(backend: str, operator: str, tensor: torch.Tensor) -> str | None:
    """Why `backend` cannot run `operator` on tensors like `tensor`, or None when it can.

    Args:
        backend: "cpu" or "cuda".
        operator: Name of the operator; all that have a module in this package are supported.
        tensor: A tensor of the device and dtype in question.
    """
    if _missing is not None:
        _warn_once()
        return _missing
    if tensor.device.type != backend:
        return f"it runs on {backend} tensors"
    if backend == "cuda" and not _C.has_cuda:
        return "the compiled core was built without CUDA"
    if backend == "cpu":
        _check_instruction_set()
    if tensor.dtype not in DTYPE_CODES:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPE_CODES)
        return f"it reads {accepted}"
    return None


def _check_instruction_set() -> None:
    try:
        _C.cpu_isa()
    except ValueError as error:
        raise InputError(f"FRANCA_FAST_CPU_ISA: {error}") from None


def _warn_once() -> None:
    global _warned
    if _warned:
        return
    _warned = True
    warnings.warn(
        "franca_fast was installed without its compiled core, so the slower 'torch' backend runs. "
        "Install a C++17 compiler and reinstall franca_fast to build it.",
        RuntimeWarning,
        stacklevel=2,
    )
