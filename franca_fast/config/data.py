"""What the configuration asks of the data."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import torch

from franca_fast.config.schema import Config
from franca_fast.data import CropSettings, MaskSettings, TrainLoader, build_train_loader


def crop_settings(config: Config) -> CropSettings:
    """The crops and their augmentation.

    Raises:
        InputError: a value out of range, or a crop that is no multiple of the patch.
    """
    settings = CropSettings(**asdict(config.crops), **asdict(config.augmentation))
    settings.check_patch_size(config.student.patch_size)
    return settings


def mask_settings(config: Config) -> MaskSettings:
    """Which patches are masked."""
    train, ibot = config.train, config.ibot
    if not train.use_block_masking:
        kind = "random"
    elif not train.use_inverse_block:
        kind = "block"
    else:
        kind = "cyclic" if train.roll else "inverse_block"
    ratios: Any = ibot.mask_ratio_min_max  # a list, whose length is checked there
    return MaskSettings(ibot.mask_sample_probability, ratios, kind, roll=train.roll)


def mean_masked_patches(config: Config) -> int:
    """Masked patches in the batch of one process, on average."""
    masks = mask_settings(config)
    n_patches = (config.crops.global_crops_size // config.student.patch_size) ** 2
    ratio = sum(masks.mask_ratio_min_max) / 2
    crops = 2 * config.train.batch_size_per_gpu * masks.mask_sample_probability
    return round(crops * ratio * n_patches)


def build_loader(
    config: Config, device: torch.device, rank: int = 0, world_size: int = 1
) -> TrainLoader:
    """The endless batches of one rank of a run, on its device.

    Raises:
        InputError: data that is missing, empty or unreadable.
    """
    return build_train_loader(
        config.train.dataset_path,
        batch_size=config.train.batch_size_per_gpu,
        crops=crop_settings(config),
        masking=mask_settings(config),
        patch_size=config.student.patch_size,
        seed=config.train.seed,
        rank=rank,
        world_size=world_size,
        num_workers=min(config.train.num_workers, os.cpu_count() or 1),
        shuffle_buffer=config.train.shuffle_buffer,
        max_bad_fraction=config.train.max_bad_fraction,
        max_image_pixels=config.train.max_image_pixels,
        levels=config.train.levels,
        allow_pipe=config.train.allow_pipe,
        # On a GPU colours are changed there; on a CPU the workers do it.
        device=None if device.type == "cpu" else device,
    )
