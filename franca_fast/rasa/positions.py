"""Positions of patches, and what a linear probe can know of them, in closed form."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from franca_fast.errors import InputError

# Of the mean variance of a feature: enough to solve with features that were projected out.
_RIDGE = 1e-6


def patch_positions(grid: tuple[int, int]) -> Tensor:
    """(row, column) of every patch, row by row, each from 0 at the first to 1 at the last.

    Args:
        grid: rows and columns, at least 2 of each.

    Returns:
        float32 [rows * columns, 2].

    Raises:
        InputError: too few patches.

    Example:
        >>> patch_positions((2, 2)).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    rows, columns = grid
    if rows < 2 or columns < 2:
        raise InputError(f"grid: {rows} x {columns} patches; accepted: at least 2 x 2")
    axes = [torch.arange(n, dtype=torch.float32) / (n - 1) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)


def chance_error(positions: Tensor) -> float:
    """Mean square error of answering 0.5 always: the variance of the coordinates.

    Example:
        >>> round(chance_error(patch_positions((4, 4))), 4)  # (n + 1) / (12 (n - 1))
        0.1389
    """
    return float((positions.double() - 0.5).square().mean())


class Moments:
    """Sums over tokens z with positions y, from which every least-squares question is answered.

    Args:
        tokens: batches [b, n, d].
        positions: [n, 2].

    Attributes:
        count: number of tokens.
        mean: float64 [d], of z.
        gram: float64 [d, d], mean of z z^T.
        covariance: float64 [d, 2], of z and y.

    Raises:
        InputError: no tokens.
    """

    def __init__(self, tokens: Iterable[Tensor], positions: Tensor) -> None:
        images, total, gram, cross = 0, None, None, None
        y = positions.double() - 0.5
        for batch in tokens:
            z = batch.double()
            flat = z.flatten(0, 1)
            by_patch, y = z.sum(0), y.to(z.device)
            parts = (flat.sum(0), flat.T @ flat, by_patch.T @ y)
            if total is None or gram is None or cross is None:
                total, gram, cross = parts
            else:
                total, gram, cross = total + parts[0], gram + parts[1], cross + parts[2]
            images += len(batch)
        if total is None or gram is None or cross is None:
            raise InputError("images: none is readable")
        self.count = images * len(positions)
        self.variance = chance_error(positions)
        self.mean = total.cpu() / self.count
        self.gram = gram.cpu() / self.count
        self.covariance = cross.cpu() / self.count  # every image has every y, whose mean is 0 here

    def energy(self, matrix: Tensor) -> float:
        """Mean squared length of M z."""
        return float(((matrix @ self.gram) * matrix).sum())

    def spread(self, matrix: Tensor) -> float:
        """Mean squared length of M (z - mean)."""
        return self.energy(matrix) - float((matrix @ self.mean).square().sum())

    def probe(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Ridge regression of y - 0.5 on M z: (weights [2, d] on raw z, bias [2])."""
        deviations = self.gram - torch.outer(self.mean, self.mean)
        seen = matrix @ deviations @ matrix.T
        ridge = _RIDGE * deviations.trace() / len(seen)
        seen = seen + ridge * torch.eye(len(seen), dtype=seen.dtype)
        weights = torch.linalg.solve(seen, matrix @ self.covariance).T @ matrix
        return weights, -weights @ self.mean

    def error(self, probe: tuple[Tensor, Tensor]) -> float:
        """Mean square error, over both coordinates, of a probe on these tokens."""
        weights, bias = probe
        along = weights @ self.mean + bias  # the mean answer; that of y - 0.5 is 0
        deviations = self.gram - torch.outer(self.mean, self.mean)
        spread = ((weights @ deviations) * weights).sum() / 2
        shared = (weights * self.covariance.T).sum() / 2
        return float(self.variance + spread - 2 * shared + along.square().sum() / 2)
