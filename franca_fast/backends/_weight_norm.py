"""Weight-normalised prototypes, the way the compiled core takes them on a CPU and on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from franca_fast.backends._core import pack_heads, vector

# Address, columns and row stride, and the code of the dtype.
Matrix = tuple[list[int], int]


class Prototypes(NamedTuple):
    """Prototypes v [K, C], columns adjacent, of lengths g [K], float32 and contiguous."""

    v: Tensor
    g: Tensor

    @classmethod
    def of(cls, v: Tensor, g: Tensor) -> Prototypes:
        """Those of a model, copied where the core could not read them."""
        lengths = vector(g.float(), "g", v.shape[:1], torch.float32, v.device)
        return cls(adjacent(v), lengths)

    def part(self, rows: slice) -> Prototypes:
        """Some of them."""
        return Prototypes(self.v[rows], self.g[rows])

    def packed(self) -> tuple[Matrix, int, int]:
        """As the core takes them: v, address of g, and K."""
        return packed(self.v), self.g.data_ptr(), self.v.shape[0]


def adjacent(matrix: Tensor) -> Tensor:
    """A matrix with adjacent columns: a copy where they are apart."""
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] <= 1 else matrix.contiguous()


def packed(matrix: Tensor) -> Matrix:
    """A matrix as the core takes it."""
    heads = pack_heads([matrix], "prototypes", matrix.device)
    return heads.numbers, heads.dtype
