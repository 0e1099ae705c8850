"""SwiGLU's product in the compiled core: one pass over the rows, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import pack_heads


def forward(h: Tensor) -> Tensor:
    out = h.new_empty((*h.shape[:-1], h.shape[-1] // 2))
    given = pack_heads([_rows(h), _rows(out)], "h")
    _C.swiglu(given.numbers, given.n_rows, given.dtype, torch.get_num_threads())
    return out


def backward(grad: Tensor, h: Tensor) -> Tensor:
    gradient = h.new_empty(h.shape)
    given = pack_heads([_rows(h), _rows(grad), _rows(gradient)], "h")
    _C.swiglu_gradient(given.numbers, given.n_rows, given.dtype, torch.get_num_threads())
    return gradient


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
