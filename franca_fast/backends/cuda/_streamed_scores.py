"""Streamed scores, the way the compiled core takes them."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from franca_fast.backends._core import pack_heads, vector
from franca_fast.backends.contracts import Scores

# Scores are multiplied by warpgroups where the device can do that (wgmma, compute capability 9.0),
# elsewhere by warps (mma.sync). "0" is for measuring what that gains.
_WARPGROUPS = os.environ.get("FRANCA_FAST_WARPGROUPS", "1") != "0"


class Streamed(NamedTuple):
    """Streamed scores of all heads.

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


def pack_streamed(scores: Scores) -> Streamed:
    """Checks streamed scores, whose scales may be left out, and lays them out for the core.

    Raises:
        InputError: If shapes, dtypes or devices do not fit together.
    """
    device = scores.values[0].device
    x = pack_heads(scores.values, "features", device)
    # Heads differ in their number of prototypes, so each is a matrix of its own.
    v = [pack_heads([p], "prototypes", device) for p in scores.prototypes]
    columns = [head.n_rows for head in v]
    scales: list[Tensor] = []
    if scores.scales:
        scales = [
            vector(s, "scales", (width,), torch.float32, device)
            for s, width in zip(scores.scales, columns, strict=True)
        ]
    arguments = (
        x.numbers,
        [number for head in v for number in head.numbers],
        columns,
        [s.data_ptr() for s in scales] or [0] * len(columns),
        x.n_rows,
        x.dtype,
        _WARPGROUPS,
    )
    return Streamed(arguments, columns, x.n_rows, (x, v, scales))
