"""Shares of test images whose class is among the best scored."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from franca_fast.evaluation.intervals import bootstrap_interval, mean_and_error

BEST = 5  # of the top-5 accuracy


def best_of(n_classes: int) -> int:
    """How many answers the top-5 accuracy accepts: all classes where there are fewer than five."""
    return min(BEST, n_classes)


def among_best(scores: Tensor, classes: Tensor, best: int) -> Tensor:
    """Whether the true class is among the best scored ones.

    Ties count against it: of classes with equal scores the true one comes last, so that a class
    without a vote is right only where all classes are. This depends on no order of classes.

    Args:
        scores: [t, classes].
        classes: int64 [t], columns of `scores`; -1 for a class that has none, which is wrong.
        best: how many answers are accepted.

    Returns:
        bool [t].

    Example:
        >>> import torch
        >>> among_best(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([0]), 1)
        tensor([False])
    """
    own = scores.gather(1, classes.clamp(min=0)[:, None])
    return ((scores >= own).sum(1) <= best) & (classes >= 0)


def accuracies(
    correct: Mapping[str, Tensor],
) -> tuple[dict[str, float], dict[str, float], dict[str, list[float]]]:
    """Accuracies in per cent, with what is known of their precision.

    Args:
        correct: name of a figure -> bool [tries, t], whether each test image is right.

    Returns:
        name -> mean over images and tries; name -> standard error over tries, where there are
        several; name -> 95 % bootstrap interval over test images (see `bootstrap_interval`), of
        each image's mean over tries.

    Example:
        >>> import torch
        >>> accuracies({"k=1": torch.tensor([[True, True], [True, False]])})[:2]
        ({'k=1': 75.0}, {'k=1': 25.0})
    """
    figures, errors, intervals = dict[str, float](), dict[str, float](), dict[str, list[float]]()
    for name, right in correct.items():
        shares = 100.0 * right.double().cpu()
        figures[name], error = mean_and_error(shares.mean(1).tolist())
        if error is not None:
            errors[name] = error
        intervals[name] = [round(end, 3) for end in bootstrap_interval(shares.mean(0))]
    return figures, errors, intervals
