"""Scores of weight-normalised prototypes in the compiled core and matrix products of the library.

Prototypes in float32 are normalised a block at a time. A block stays in the cache between that and
its product, forward and backward, so the normalised prototypes are never stored, and nothing of the
size of the scores but the scores is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import vector
from franca_fast.backends._weight_norm import Prototypes, adjacent, packed
from franca_fast.backends.cpu._memory import matrix

# Fewer make products that the library is slower at, more leave the second cache (2 MB here at 256
# columns); `python bench/cpu.py --only scores` shows what becomes of it.
_BLOCK_ROWS = 2048


def normalized(v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    w = matrix(v.shape[0], v.shape[1], dtype)
    _normalize(Prototypes.of(v, g), w)
    return w


def gradients(
    dprototypes: Tensor, dscales: Tensor | None, v: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    dv, dg = matrix(v.shape[0], v.shape[1], v.dtype), g.new_empty(g.shape, dtype=torch.float32)
    if dscales is not None:
        dscales = vector(dscales, "dscales", g.shape, torch.float32)
    _gradients(Prototypes.of(v, g), adjacent(dprototypes), dscales, dv, dg)
    return dv, dg.to(g.dtype)


def forward(features: Tensor, v: Tensor, g: Tensor, given: Tensor | None) -> Tensor:
    out = matrix(features.shape[0], v.shape[0], features.dtype)
    whole = _whole(v, g, given)
    if whole is not None:
        return torch.mm(features, whole.t(), out=out)
    for part, w in _blocks(Prototypes.of(v, g)):
        torch.mm(features, w.t(), out=out[:, part])
    return out


def backward(
    grad: Tensor, features: Tensor, v: Tensor, g: Tensor, given: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    whole = _whole(v, g, given)
    if whole is not None:
        return grad @ whole, *gradients(grad.t() @ features, None, v, g)
    prototypes = Prototypes.of(v, g)
    dx, dv = features.new_zeros(features.shape), matrix(v.shape[0], v.shape[1], v.dtype)
    dg = torch.empty_like(prototypes.g)
    for part, w in _blocks(prototypes):
        dx.addmm_(grad[:, part], w)
        dw = torch.mm(grad[:, part].t(), features, out=dv[part])
        _gradients(prototypes.part(part), dw, None, dw, dg[part])
    return dx, dv, dg


def _whole(v: Tensor, g: Tensor, given: Tensor | None) -> Tensor | None:
    """All normalised prototypes, where they are there or not to be taken block by block.

    Products of 16-bit blocks would be rounded before they are summed.
    """
    return given if given is not None or v.dtype == torch.float32 else normalized(v, g, v.dtype)


def _blocks(prototypes: Prototypes) -> Iterator[tuple[slice, Tensor]]:
    """Pieces of the normalised prototypes, each in the memory of the one before."""
    v = prototypes.v
    memory = v.new_empty(min(_BLOCK_ROWS, v.shape[0]), v.shape[1])
    for start in range(0, v.shape[0], _BLOCK_ROWS):
        part = slice(start, min(start + _BLOCK_ROWS, v.shape[0]))
        w = memory[: part.stop - start]
        _normalize(prototypes.part(part), w)
        yield part, w


def _normalize(prototypes: Prototypes, w: Tensor) -> None:
    _C.normalize_prototypes(*prototypes.packed(), packed(w), torch.get_num_threads())


def _gradients(
    prototypes: Prototypes, dw: Tensor, dscales: Tensor | None, dv: Tensor, dg: Tensor
) -> None:
    _C.prototype_gradients(
        *prototypes.packed(),
        packed(dw),
        0 if dscales is None else dscales.data_ptr(),
        packed(dv),
        dg.data_ptr(),
        torch.get_num_threads(),
    )
