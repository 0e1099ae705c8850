"""Checks of values that must fit together; what one key accepts stands beside it in the schema."""

from __future__ import annotations

import math

from franca_fast.config.data import crop_settings, mask_settings
from franca_fast.config.schema import Config
from franca_fast.config.setting import settings
from franca_fast.data.decoding import DecodeSettings
from franca_fast.errors import InputError
from franca_fast.models import ARCHITECTURES


def check_config(config: Config) -> None:
    """Raises InputError for the first value that is out of range or does not fit the others."""
    for key, value, setting in settings(config):
        setting.check(key, value)
    crop_settings(config)
    mask_settings(config)
    DecodeSettings(config.train.max_image_pixels, config.train.levels)
    _check_nesting(config)
    _check_losses(config)
    _check_lengths(config)
    _check_choices(config)


def _check_nesting(config: Config) -> None:
    width = ARCHITECTURES[config.student.arch]["embed_dim"]
    given = config.dino.nesting_dims
    if given is not None and not config.dino.MRL:
        raise InputError(f"dino.nesting_dims: {given}; accepted: null when dino.MRL is false")
    if given is not None and (not given or given[0] < 1 or sorted({*given, width}) != given):
        raise InputError(
            f"dino.nesting_dims: {given}; accepted: increasing widths that end with {width}, the "
            f"width of {config.student.arch}"
        )
    for key, prototypes, _ in settings(config):
        if not key.endswith(".head_n_prototypes"):
            continue
        for dim in config.nesting_dims:
            if prototypes * dim % width or prototypes * dim < width:
                raise InputError(
                    f"{key}: {prototypes} with the nested width {dim} of {width}; accepted: a "
                    f"multiple of {width // math.gcd(width, dim)}"
                )


def _check_losses(config: Config) -> None:
    weights = {key: value for key, value, _ in settings(config) if key.endswith(".loss_weight")}
    if not any(weights.values()):
        raise InputError(f"{' and '.join(weights)}: 0; accepted: one of them above 0")
    if config.ibot.loss_weight == 0:
        return
    if config.ibot.mask_sample_probability == 0 or config.ibot.mask_ratio_min_max[1] == 0:
        raise InputError(
            f"ibot.loss_weight: {config.ibot.loss_weight} although no patch is ever masked; "
            "accepted: 0, or ibot.mask_sample_probability and ibot.mask_ratio_min_max[1] above 0"
        )


def _check_lengths(config: Config) -> None:
    length, total = config.train.OFFICIAL_EPOCH_LENGTH, config.total_steps
    if config.optim.warmup_epochs * length > total:
        raise InputError(
            f"optim.warmup_epochs: {config.optim.warmup_epochs} epochs of {length} steps are "
            f"longer than the run ({total} steps); accepted: {total // length} or less"
        )


def _check_choices(config: Config) -> None:
    """Keys of which at most one, or both, can be given."""
    if config.train.parallel == "replicated" and config.train.shard_ranks is not None:
        raise InputError(
            f"train.shard_ranks: {config.train.shard_ranks}; accepted: null when train.parallel is "
            "replicated"
        )
    if config.MODEL.WEIGHTS and config.student.pretrained_weights:
        raise InputError(
            "MODEL.WEIGHTS and student.pretrained_weights: both given; accepted: one of them"
        )
    if bool(config.evaluation.knn_train) != bool(config.evaluation.knn_test):
        raise InputError(
            "evaluation.knn_train and evaluation.knn_test: one given; accepted: both or neither"
        )
