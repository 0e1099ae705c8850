"""Whether the clustering losses store the prototype scores of a step or recompute them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch

from franca_fast.config.schema import Config
from franca_fast.training.precision import choose_device
from franca_fast.training.student_teacher import ScoredRows

# Beside the scores there must be room for networks, optimizer and activations.
_LARGEST_SHARE = 0.25


class ScoreMemory(NamedTuple):
    """The memory mode of a run.

    Attributes:
        streamed: scores are recomputed block by block, forward and backward.
        stored_bytes: what stored scores of a step and their gradients take, about.
        total_bytes: memory of the device.
    """

    streamed: bool
    stored_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        mode = "streamed" if self.streamed else "stored"
        return (
            f"scores {mode} (stored they take {self.stored_bytes / 1e9:.2f} GB a step, "
            f"the device has {self.total_bytes / 1e9:.0f} GB)"
        )


def choose_score_memory(
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    scores: Iterable[ScoredRows],
) -> ScoreMemory:
    """Decides by `train.scores`; "auto" streams what would take over a quarter of the memory.

    It looks at the size of the memory, not at what is free, so that a run that starts again on the
    same machine computes the same bits.

    Args:
        config: a checked configuration.
        device: where the losses are computed.
        dtype: of the scores.
        scores: what the nested losses read in a batch.
    """
    # Scores of the teacher, and scores and their gradients of the student.
    stored = dtype.itemsize * sum(
        (loss.teacher + 2 * loss.student) * sum(loss.head.out_dims) for loss in scores
    )
    total = _total_memory(device)
    streamed = config.train.scores == "streamed" or (
        config.train.scores == "auto" and stored > _LARGEST_SHARE * total
    )
    return ScoreMemory(streamed, stored, total)


def describe_choice() -> str:
    """How pretraining here would choose a mode, in one line; without a configuration."""
    device = choose_device("auto")
    limit = _LARGEST_SHARE * _total_memory(device) / 1e9
    return (
        f"train.scores=auto stores the prototype scores of a step up to {limit:.1f} GB "
        f"({_LARGEST_SHARE:.0%} of the memory of {device}), else streams them; the log of a run "
        f"says which"
    )


def _total_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
