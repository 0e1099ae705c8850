"""Memory that kernels fill."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C

# From here on, memory comes fresh from the operating system each time.
_LARGE_BYTES = 4 << 20


def matrix(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """A new CPU matrix, in huge pages where it is large."""
    out = torch.empty(rows, columns, dtype=dtype)
    if out.nbytes >= _LARGE_BYTES:
        _C.prefer_huge_pages(out.data_ptr(), out.nbytes)
    return out
