"""SwiGLU's product in the compiled core: one pass over the rows, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import pack_heads
from franca_fast.backends.cpu._memory import matrix

# Results are given their shape in place: autograd lets nobody write to the views of an operator.


def forward(h: Tensor) -> Tensor:
    rows = _rows(h)
    out = matrix(rows.shape[0], rows.shape[1] // 2, h.dtype)
    given = pack_heads([rows, out], "h")
    _C.swiglu(given.numbers, given.n_rows, given.dtype, torch.get_num_threads())
    return out.resize_(*h.shape[:-1], out.shape[1])


def backward(grad: Tensor, h: Tensor) -> Tensor:
    rows = _rows(h)
    gradient = matrix(rows.shape[0], rows.shape[1], h.dtype)
    given = pack_heads([rows, _rows(grad), gradient], "h")
    _C.swiglu_gradient(given.numbers, given.n_rows, given.dtype, torch.get_num_threads())
    return gradient.resize_(h.shape)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
