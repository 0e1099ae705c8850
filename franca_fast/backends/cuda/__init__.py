"""The operators on CUDA tensors in the compiled core, `franca_fast._C.cuda`.

Kernels run on the current stream of the tensors' device, take their workspaces from PyTorch's
allocator and never synchronise with the host, so they can be captured in CUDA graphs.
"""

from __future__ import annotations

import functools

import torch

from franca_fast.backends._core import _C, missing, unreadable

_OLDEST_CAPABILITY = (8, 0)
# Matrix instructions multiply 16-bit numbers; float32 is left to the other backends.
_MATRIX_OPERATORS = ("prototype_scores", "streamed_clustering", "varlen_attention")


def unavailable(operator: str, tensor: torch.Tensor) -> str | None:
    """Why the kernels cannot run `operator` on tensors like `tensor`, or None when they can."""
    reason = missing() or unreadable(tensor, "cuda")
    if reason is not None:
        return reason
    if not _C.has_cuda:
        return "the compiled core was built without CUDA"
    if operator in _MATRIX_OPERATORS and tensor.dtype == torch.float32:
        return "its matrix instructions read bfloat16 and float16"
    return _unsupported(tensor.device.index or 0)


@functools.cache
def _unsupported(index: int) -> str | None:
    capability = "compute capability {}.{}".format(*torch.cuda.get_device_capability(index))
    if torch.cuda.get_device_capability(index) < _OLDEST_CAPABILITY:
        return "{} is below {}.{}".format(capability, *_OLDEST_CAPABILITY)
    with torch.cuda.device(index):
        if not _C.cuda.has_code():
            return f"the compiled core was not built for {capability} (FRANCA_FAST_CUDA_ARCHS)"
    return None
