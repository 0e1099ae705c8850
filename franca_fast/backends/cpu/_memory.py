"""Memory that kernels fill."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C

# From here on, memory comes fresh from the operating system each time.
_LARGE_BYTES = 4 << 20
_HUGE_PAGE = 2 << 20


def matrix(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """A new CPU matrix; where it is large, in huge pages from its first byte to its last."""
    n_bytes = rows * columns * dtype.itemsize
    if n_bytes < _LARGE_BYTES:
        return torch.empty(rows, columns, dtype=dtype)
    pages = -(-n_bytes // _HUGE_PAGE)
    room = torch.empty((pages + 1) * _HUGE_PAGE, dtype=torch.uint8)
    skipped = -room.data_ptr() % _HUGE_PAGE
    _C.prefer_huge_pages(room.data_ptr() + skipped, pages * _HUGE_PAGE)
    out = torch.empty(0, dtype=dtype)
    place = skipped // dtype.itemsize
    return out.set_(room.untyped_storage(), place, (rows, columns), (columns, 1))
