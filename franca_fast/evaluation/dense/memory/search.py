"""Exact nearest neighbours of many queries in a memory that passes by in blocks and is never held.

Cosines are computed twice: in float32 for all pairs, which tells the pairs that can matter, and
exactly for those. Exactly means that no rounding is left: entries of unit vectors are rounded to
multiples of 2^-26, so that products are multiples of 2^-52 and all their sums, which are below 2,
fit float64. Nothing therefore depends on the sizes of blocks, on their order, or on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from franca_fast.errors import InputError

_STEP = 2.0**-26
_TILE = 4096  # rows of the memory and of the queries whose products are held at a time
_FEW = 32  # with more than 1 / 32 of the pairs to look at, all are computed exactly
_PAIRS_EXACT = 2**21  # held at a time in float64
_NUMBERS = 2**18  # of vectors in float64 at a time: few enough to stay in the processor's cache
NOTHING = torch.iinfo(torch.int64).max  # stands for a neighbour that there is not


def unit_rows(features: Tensor, width: int | None = None) -> Tensor:
    """Features cut to a width and scaled to length 1, as `Neighbours` takes them.

    Args:
        features: [n, d], of any floating type.
        width: how many entries are kept, the first ones; None keeps all.

    Returns:
        float32 [n, width], multiples of 2^-26; a row of zeros stays one.

    Raises:
        InputError: features that are not finite.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0, 12.0]]), 2)
        tensor([[0.6000, 0.8000]])
    """
    parts = []
    features = features[:, :width]
    for rows in features.split(max(1, _NUMBERS // features.shape[1])):
        long = rows.double()
        length = torch.linalg.vector_norm(long, dim=1, keepdim=True)
        if not bool(torch.isfinite(length).all()):
            raise InputError("features: not all finite; accepted: a model whose features are")
        long = long / length.clamp(min=torch.finfo(torch.float64).tiny)
        parts.append(long.div_(_STEP).round_().mul_(_STEP).float())
    return torch.cat(parts) if parts else features.float()


class Neighbours:
    """The k most similar rows of a memory for each query, while the memory passes by.

    Of equally similar rows the one with the smaller number comes first.

    Args:
        queries: [q, d], from `unit_rows`.
        k: how many.

    Attributes:
        similarity: float64 [q, k], cosines in descending order; -inf where the memory had fewer.
        numbers: int64 [q, k], of the rows of the memory; `NOTHING` where it had fewer.

    Example:
        >>> found = Neighbours(unit_rows(torch.eye(2)), k=1)
        >>> found.add(unit_rows(torch.tensor([[1.0, 2.0]])), torch.tensor([7]))
        >>> found.add(unit_rows(torch.tensor([[2.0, 1.0]])), torch.tensor([8]))
        >>> found.numbers.tolist()
        [[8], [7]]
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        if k < 1:
            raise InputError(f"k: {k}; accepted: 1 or more")
        self.queries, self.k = queries, k
        # An error of float32 products is at most d 2^-24 for unit vectors, in whatever order they
        # are summed (Higham, Accuracy and Stability, eq. 3.5); the rest is for the bound's own.
        self._margin = (queries.shape[1] + 8) * 2.0**-24
        shape = (len(queries), k)
        self.similarity = queries.new_full(shape, -torch.inf, dtype=torch.float64)
        self.numbers = torch.full(shape, NOTHING, device=queries.device)

    def add(self, memory: Tensor, numbers: Tensor) -> None:
        """Looks at further rows of the memory.

        Args:
            memory: [m, d], from `unit_rows`, on the device of the queries.
            numbers: int64 [m], each given once, over all calls.
        """
        # What takes the lower number among equals in `_add_all` needs them in order.
        numbers, order = numbers.to(self.queries.device).sort()
        with _plain_float32(self.queries.device):
            for rows in order.split(_TILE):
                tile, names = memory.index_select(0, rows), numbers[: len(rows)]
                numbers = numbers[len(rows) :]
                for first in range(0, len(self.queries), _TILE):
                    self._add_tile(first, tile, names)

    def state(self) -> dict[str, Tensor]:
        """What was found so far, to be kept in a file."""
        return {"similarity": self.similarity, "numbers": self.numbers}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave for the same queries."""
        self.similarity.copy_(state["similarity"])
        self.numbers.copy_(state["numbers"])

    def _add_tile(self, first: int, tile: Tensor, names: Tensor) -> None:
        queries = self.queries[first : first + _TILE]
        worst = self.similarity[first : first + _TILE, -1]
        bound = (worst - self._margin).float()[:, None]
        similarity = queries @ tile.T
        rows = (similarity.amax(1, keepdim=True) >= bound).flatten().nonzero().flatten()
        places, columns = (similarity.index_select(0, rows) >= bound[rows]).nonzero(as_tuple=True)
        if len(places) * _FEW > similarity.numel():
            self._add_all(first, tile, names)
            return
        rows = rows[places]
        pieces = max(1, _NUMBERS // tile.shape[1])
        exact = [
            (queries.index_select(0, i).double() * tile.index_select(0, j).double()).sum(1)
            for i, j in zip(rows.split(pieces), columns.split(pieces), strict=True)
        ]
        if exact:
            self._merge(rows + first, torch.cat(exact), names[columns])

    def _add_all(self, first: int, tile: Tensor, names: Tensor) -> None:
        """The same where nearly every pair could matter, as at first, or with equal features."""
        exact_tile = tile.double().T
        k = min(self.k, len(tile))
        queries = self.queries[first : first + _TILE]
        for rows in queries.split(max(1, _PAIRS_EXACT // len(tile))):
            best, columns = (rows.double() @ exact_tile).sort(dim=1, descending=True, stable=True)
            places = torch.arange(first, first + len(rows), device=rows.device)
            self._merge(
                places.repeat_interleave(k),
                best[:, :k].flatten(),
                names[columns[:, :k]].flatten(),
            )
            first += len(rows)

    def _merge(self, rows: Tensor, similarity: Tensor, numbers: Tensor) -> None:
        """Puts candidates into the lists of their queries."""
        worst, last = self.similarity[rows, -1], self.numbers[rows, -1]
        better = (similarity > worst) | ((similarity == worst) & (numbers < last))
        rows, places = rows[better].unique(return_inverse=True)
        own = self.similarity.index_select(0, rows), self.numbers.index_select(0, rows)
        similarity = torch.cat([own[0].flatten(), similarity[better]])
        numbers = torch.cat([own[1].flatten(), numbers[better]])
        order = torch.arange(len(rows), device=rows.device)
        places = torch.cat([order.repeat_interleave(self.k), places])
        # Sorted by query, then by similarity, then by number.
        order = numbers.argsort(stable=True)
        order = order[similarity[order].argsort(descending=True, stable=True)]
        order = order[places[order].argsort(stable=True)]
        lengths = torch.bincount(places, minlength=len(rows))
        begins = lengths.cumsum(0) - lengths
        chosen = order[begins[:, None] + torch.arange(self.k, device=rows.device)]
        self.similarity.index_copy_(0, rows, similarity[chosen])
        self.numbers.index_copy_(0, rows, numbers[chosen])


@contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """Products of float32 are neither of bfloat16 nor of TF32 here, whatever was chosen outside."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(chosen)


def attention_weights(similarity: Tensor, temperature: float) -> Tensor:
    """What each neighbour's label counts: softmax(cosine / temperature), 0 for one that is not.

    Args:
        similarity: [q, k], in descending order; -inf where there is no neighbour.
        temperature: Hummingbird's is 0.02 (Balažević et al. 2023, eq. 3).

    Returns:
        float64 [q, k]; rows sum to 1.

    Example:
        >>> attention_weights(torch.tensor([[0.5, 0.5, -torch.inf]]), 0.02).tolist()
        [[0.5, 0.5, 0.0]]
    """
    return torch.softmax(similarity.double() / temperature, 1)


def bytes_per_query(width: int, k: int) -> int:
    """Memory that a query and its neighbours take.

    Example:
        >>> bytes_per_query(768, 30)
        3552
    """
    return 4 * width + 16 * k
