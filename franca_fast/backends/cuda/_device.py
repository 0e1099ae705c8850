"""What every launch needs: the device made current, its stream, and memory."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor

_CURRENT = contextlib.nullcontext()


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the device of `tensor` the current one, which it mostly is already."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return _CURRENT
    return torch.cuda.device(tensor.device)


def stream_of(tensor: Tensor) -> int:
    """Address of the current stream of the tensor's device."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def workspace(n_bytes: int, device: torch.device) -> Tensor:
    """Uninitialised device memory. The allocator keeps it for the stream that uses it."""
    return torch.empty(n_bytes, dtype=torch.uint8, device=device)
