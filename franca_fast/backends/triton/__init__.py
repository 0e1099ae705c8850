"""The operators as Triton kernels: for CUDA tensors where the compiled core is not built.

Triton is imported by the operators' modules, never by this one. With TRITON_INTERPRET=1 in the
environment the kernels run on CPU tensors in Triton's interpreter, which is how they are tested on
machines without a GPU.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = (3, 4)  # the oldest release that these kernels were tried with
_OLDEST_CAPABILITY = (8, 0)  # bfloat16 in registers and tensor cores


def unavailable(operator: str, tensor: torch.Tensor) -> str | None:
    """Why the Triton kernels cannot run on tensors like `tensor`, or None when they can."""
    reason = _missing()
    if reason is not None:
        return reason
    if tensor.dtype not in _DTYPES:
        return f"{tensor.dtype} is not among float32, bfloat16 and float16"
    if operator == "varlen_attention" and tensor.dtype == torch.float32:
        return "its matrix products are those of bfloat16 and float16"
    if interpreted():
        return None
    if tensor.device.type != "cuda":
        return "the tensors are not on a CUDA device (TRITON_INTERPRET=1 interprets the kernels)"
    capability = torch.cuda.get_device_capability(tensor.device)
    if capability < _OLDEST_CAPABILITY:
        return "compute capability {}.{} is below {}.{}".format(*capability, *_OLDEST_CAPABILITY)
    return None


def interpreted() -> bool:
    """Whether the environment asks for Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _missing() -> str | None:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return f"triton {version} is older than {_OLDEST[0]}.{_OLDEST[1]}"
    return None
