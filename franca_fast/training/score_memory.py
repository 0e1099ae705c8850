"""Whether the clustering losses store the prototype scores of a step or recompute them."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from franca_fast.config.data import mask_settings
from franca_fast.config.schema import Config
from franca_fast.data.settings import MaskSettings
from franca_fast.models import NestedPrototypeHead

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
    image_head: NestedPrototypeHead | None,
    patch_head: NestedPrototypeHead | None,
) -> ScoreMemory:
    """Decides by `train.scores`; "auto" streams what would take over a quarter of the memory.

    It looks at the size of the memory, not at what is free, so that a run that starts again on the
    same machine computes the same bits.

    Args:
        config: a checked configuration.
        device: where the losses are computed.
        dtype: of the scores.
        image_head: scores CLS tokens; None without the image-level loss.
        patch_head: scores masked patches; None without the patch-level loss.
    """
    batch, crops = config.train.batch_size_per_gpu, config.crops
    # Scores of the teacher, and scores and their gradients of the student.
    image_rows = batch * (2 + 2 * (2 + crops.local_crops_number))
    patch_rows = 3 * mean_masked_patches(config, mask_settings(config))
    stored = dtype.itemsize * (
        image_rows * (sum(image_head.out_dims) if image_head else 0)
        + patch_rows * (sum(patch_head.out_dims) if patch_head else 0)
    )
    total = _total_memory(device)
    streamed = config.train.scores == "streamed" or (
        config.train.scores == "auto" and stored > _LARGEST_SHARE * total
    )
    return ScoreMemory(streamed, stored, total)


def mean_masked_patches(config: Config, masks: MaskSettings) -> int:
    """Masked patches of a batch, on average."""
    n_patches = (config.crops.global_crops_size // config.student.patch_size) ** 2
    ratio = sum(masks.mask_ratio_min_max) / 2
    crops = 2 * config.train.batch_size_per_gpu * masks.mask_sample_probability
    return round(crops * ratio * n_patches)


def describe_choice() -> str:
    """How pretraining here would choose a mode, in one line; without a configuration."""
    from franca_fast.training.precision import choose_device

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
