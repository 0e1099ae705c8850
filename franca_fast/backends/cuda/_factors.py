"""Scores as factors, the way the compiled core takes them."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from franca_fast.backends._core import pack_heads, vector

# Scores are multiplied by warpgroups where the device can do that (wgmma, compute capability 9.0),
# elsewhere by warps (mma.sync). "0" is for measuring what that gains.
_WARPGROUPS = os.environ.get("FRANCA_FAST_WARPGROUPS", "1") != "0"


class Factors(NamedTuple):
    """Factors of all heads.

    Attributes:
        arguments: Features, prototypes (address, columns and row stride of each head), number of
            prototypes and address of the scales of each head, rows, code of the dtype, and
            whether to multiply by warpgroups.
        columns: Prototypes of each head.
        n_rows: Rows of every head.
        alive: What the addresses point into.
    """

    arguments: tuple[list[int], list[int], list[int], list[int], int, int, bool]
    columns: list[int]
    n_rows: int
    alive: tuple[object, ...]


def pack_factors(
    features: list[Tensor], prototypes: list[Tensor], scales: list[Tensor] | None
) -> Factors:
    """Checks the factors of all heads and lays them out for the core.

    Raises:
        InputError: If shapes, dtypes or devices do not fit together.
    """
    device = features[0].device
    x = pack_heads(features, "features", device)
    # Heads differ in their number of prototypes, so each is a matrix of its own.
    v = [pack_heads([p], "prototypes", device) for p in prototypes]
    columns = [head.n_rows for head in v]
    alive: list[Tensor] = []
    if scales is not None:
        alive = [
            vector(s, "scales", (width,), torch.float32, device)
            for s, width in zip(scales, columns, strict=True)
        ]
    arguments = (
        x.numbers,
        [number for head in v for number in head.numbers],
        columns,
        [s.data_ptr() for s in alive] if scales is not None else [0] * len(columns),
        x.n_rows,
        x.dtype,
        _WARPGROUPS,
    )
    return Factors(arguments, columns, x.n_rows, (x, v, alive))
