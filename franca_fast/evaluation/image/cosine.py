"""Cosine similarities of many features with many others, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_SIMILARITIES_AT_ONCE = 2**27  # queries x memory held at once, 512 MiB of float32
_NUMBERS_AT_ONCE = 2**25  # of features, 256 MiB of float64


class CosineMemory:
    """Features that others are compared with, made ready once.

    Features of an untrained network differ so little that their cosines are equal in float32. With
    the memory's mean c taken out, x.y = (x - c).(y - c) + c.(y - c) + x.c, and the last term is the
    same for everything that a query x is compared with: it changes neither the order nor the ratio
    of votes, and what is left keeps its relative accuracy.

    Args:
        features: [n, d]; lengths play no part. A row of zeros has cosine 0 with everything.

    Example:
        >>> memory = CosineMemory(torch.eye(2))
        >>> [(block + rest).tolist() for block, rest in memory.compared(torch.tensor([[2.0, 0.0]]))]
        [[[1.0, 0.0]]]
    """

    def __init__(self, features: Tensor) -> None:
        self._n, width = features.shape
        blocks = features.split(max(1, _NUMBERS_AT_ONCE // width))  # those in float64 at once
        self._mean = torch.stack([_unit(rows).sum(0) for rows in blocks]).sum(0) / self._n
        self._centred = features.new_empty(width, self._n, dtype=torch.float32)
        offsets, begin = list[Tensor](), 0
        for rows in blocks:
            centred = _unit(rows) - self._mean
            self._centred[:, begin : begin + len(rows)] = centred.T
            offsets.append((centred @ self._mean).float())
            begin += len(rows)
        self._offset = torch.cat(offsets)

    def compared(self, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Compares queries with all features, in order.

        Args:
            queries: [t, d], on the memory's device.

        Yields:
            for the next b queries: float32 [b, n], their cosines but for a term that is the same
            in a row; and that term, float64 [b, 1].
        """
        for rows in queries.split(max(1, _SIMILARITIES_AT_ONCE // self._n)):
            unit = _unit(rows)
            relative = torch.addmm(self._offset, (unit - self._mean).float(), self._centred)
            yield relative, (unit @ self._mean)[:, None]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)
