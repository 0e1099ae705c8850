"""Weight-normalised prototypes on a GPU: one warp for each, between products of the library."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import vector
from franca_fast.backends._weight_norm import Prototypes, adjacent, packed
from franca_fast.backends.cuda._device import on_device_of, stream_of
from franca_fast.backends.torch.weight_norm_scores import forward, products

__all__ = ["backward", "forward", "gradients", "normalized"]


def normalized(v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    prototypes, w = Prototypes.of(v, g), v.new_empty(v.shape, dtype=dtype)
    with on_device_of(v):
        _C.cuda.normalize_prototypes(*prototypes.packed(), packed(w), stream_of(v))
    return w


def gradients(
    dprototypes: Tensor, dscales: Tensor | None, v: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    prototypes, dw = Prototypes.of(v, g), adjacent(dprototypes)
    dv, dg = v.new_empty(v.shape), torch.empty_like(prototypes.g)
    if dscales is not None:
        dscales = vector(dscales, "dscales", g.shape, torch.float32, v.device)
    with on_device_of(v):
        _C.cuda.prototype_gradients(
            *prototypes.packed(),
            packed(dw),
            0 if dscales is None else dscales.data_ptr(),
            packed(dv),
            dg.data_ptr(),
            stream_of(v),
        )
    return dv, dg.to(g.dtype)


def backward(
    grad: Tensor, features: Tensor, v: Tensor, g: Tensor, given: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dw = products(grad, features, v, g, given)
    return dx, *gradients(dw, None, v, g)
