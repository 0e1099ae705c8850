"""How far a figure of a small test set may be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from franca_fast.errors import InputError

_DRAWN_AT_ONCE = 2**22  # resamples x different values


def bootstrap_interval(
    correct: Tensor | ArrayLike, seed: int = 0, n: int = 1000
) -> tuple[float, float]:
    """95 % interval of a mean over test images, from samples drawn again with replacement.

    The percentile bootstrap (Efron 1979): n times as many images are drawn as there are, and the
    interval goes from the 2.5 % to the 97.5 % quantile of their means. How often each image is
    drawn follows a multinomial distribution; images of one value are drawn together, which is the
    same distribution, and makes the interval independent of the images' order.

    Args:
        correct: one value per image [t]: right or wrong, or a share such as the mean over tries.
        seed: of the draws.
        n: number of samples.

    Returns:
        the ends of the interval, in the unit of the values.

    Raises:
        InputError: no images, values that are not finite, or n below 1.

    Example:
        >>> bootstrap_interval([True] * 80 + [False] * 20)
        (0.72, 0.88)
    """
    values = np.asarray(
        correct.detach().cpu() if isinstance(correct, Tensor) else correct, np.float64
    )
    if values.ndim != 1 or not len(values):
        raise InputError(f"correct: {values.shape}; accepted: one value per image, [t]")
    if not np.isfinite(values).all():
        raise InputError("correct: values that are not all finite; accepted: finite ones")
    if n < 1:
        raise InputError(f"n: {n}; accepted: 1 or more samples")
    different, times = np.unique(values, return_counts=True)
    low, high = np.quantile(_means(different, times, seed, n), (0.025, 0.975))
    return float(low), float(high)


def _means(
    different: NDArray[np.float64], times: NDArray[np.int64], seed: int, n: int
) -> NDArray[np.float64]:
    """Means of n samples, from the values that occur and how often."""
    generator, images = np.random.default_rng(seed), int(times.sum())
    block = max(1, _DRAWN_AT_ONCE // len(different))
    drawn = (
        generator.multinomial(images, times / images, min(block, n - begin))
        for begin in range(0, n, block)
    )
    return np.concatenate([counts @ different for counts in drawn]) / images


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over tries and its standard error: the sample deviation over the root of their number.

    Returns:
        the mean, and the error, or None where there is one try.

    Example:
        >>> mean_and_error([1.0, 3.0]), mean_and_error([2.0])
        ((2.0, 1.0), (2.0, None))
    """
    tries = torch.tensor(values, dtype=torch.float64, device="cpu")
    if len(tries) < 2:
        return float(tries.mean()), None
    return float(tries.mean()), float(tries.std() / len(tries) ** 0.5)
