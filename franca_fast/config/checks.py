"""Checks of a configuration that types alone do not make: ranges, choices, values that must fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from franca_fast.config.data import crop_settings, mask_settings
from franca_fast.config.schema import Config
from franca_fast.errors import InputError, did_you_mean
from franca_fast.models import ARCHITECTURES, default_nesting_dims

_CHOICES: dict[str, tuple[str, ...]] = {
    "train.centering": ("centering", "sinkhorn_knopp"),
    "train.scores": ("auto", "stored", "streamed"),
    "train.parallel": ("auto", "replicated", "sharded"),
    "dino.projection": ("slice", "full"),
    "student.ffn_layer": ("mlp", "swiglu", "swiglufused"),
    "optim.scaling_rule": ("sqrt_wrt_1024", "linear_wrt_256"),
    "compute_precision.autocast": ("auto", "bf16", "fp16", "fp32"),
}

_HEAD = ("head_n_prototypes", "head_bottleneck_dim", "head_nlayers", "head_hidden_dim")

_POSITIVE: dict[str, tuple[str, ...]] = {
    "train": (
        "batch_size_per_gpu",
        "gradient_accumulation_steps",
        "timeout_minutes",
        "OFFICIAL_EPOCH_LENGTH",
        "saveckp_freq",
        "checkpoint_keep",
        "log_every",
        "max_nonfinite_steps",
        "shuffle_buffer",
    ),
    "student": ("patch_size",),
    "teacher": ("teacher_temp", "warmup_teacher_temp"),
    "optim": ("epochs",),
    "dino": _HEAD,
    "ibot": _HEAD,
}

_NOT_NEGATIVE: dict[str, tuple[str, ...]] = {
    "train": ("seed", "num_workers", "checkpoint_minutes"),
    "student": ("num_register_tokens", "layerscale"),
    "teacher": ("warmup_teacher_temp_epochs",),
    "optim": (
        "weight_decay",
        "weight_decay_end",
        "base_lr",
        "lr",
        "min_lr",
        "warmup_epochs",
        "clip_grad",
        "freeze_last_layer_epochs",
        "patch_embed_lr_mult",
        "layerwise_decay",
    ),
    "dino": ("loss_weight", "koleo_loss_weight"),
    "ibot": ("loss_weight",),
    "evaluation": ("eval_period_iterations",),
}

_SHARES = {
    "train": ("max_bad_fraction",),
    "teacher": ("momentum_teacher", "final_momentum_teacher"),
}

_BELOW_ONE = {"student": ("drop_path_rate",), "optim": ("adamw_beta1", "adamw_beta2")}


def check_config(config: Config) -> None:
    """Raises InputError for the first value that is out of range or does not fit the others."""
    for key, choices in _CHOICES.items():
        _require_one_of(config, key, choices)
    _require_each(config, _POSITIVE, lambda value: value > 0, "a value above 0")
    _require_each(config, _NOT_NEGATIVE, lambda value: value >= 0, "0 or more")
    _require_each(config, _SHARES, lambda value: 0 <= value <= 1, "a value from 0 to 1")
    _require_each(config, _BELOW_ONE, lambda value: 0 <= value < 1, "0 or more, below 1")
    for key in ("train.total_steps", "train.checkpoint_every", "train.shard_ranks"):
        _require(config, key, lambda value: value is None or value > 0, "null or a value above 0")
    crop_settings(config)
    mask_settings(config)
    _check_precision(config)
    _check_nesting(config)
    _check_losses(config)
    _check_lengths(config)
    _check_start(config)
    if bool(config.evaluation.knn_train) != bool(config.evaluation.knn_test):
        raise InputError(
            "evaluation.knn_train and evaluation.knn_test: one of them is empty; expected both or "
            "neither"
        )


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _require(config: Config, key: str, accepts: Callable[[Any], bool], accepted: str) -> None:
    value = _value(config, key)
    if not accepts(value):
        raise InputError(f"{key}: {value!r} is not accepted; expected {accepted}")


def _require_each(
    config: Config,
    keys: Mapping[str, tuple[str, ...]],
    accepts: Callable[[Any], bool],
    accepted: str,
) -> None:
    for section, names in keys.items():
        for name in names:
            _require(config, f"{section}.{name}", accepts, accepted)


def _require_one_of(config: Config, key: str, choices: tuple[str, ...]) -> None:
    value = _value(config, key)
    if value not in choices:
        raise InputError(
            f"{key}: '{value}' is not accepted{did_you_mean(value, choices)}; expected one of "
            f"{', '.join(choices)}"
        )


def _check_precision(config: Config) -> None:
    for network in ("teacher", "student"):
        for module in ("backbone", "dino_head", "ibot_head"):
            for name in ("param_dtype", "reduce_dtype", "buffer_dtype"):
                key = f"compute_precision.{network}.{module}.mixed_precision.{name}"
                _require_one_of(config, key, ("fp32", "fp16", "bf16"))
            key = f"compute_precision.{network}.{module}.sharding_strategy"
            _require_one_of(config, key, ("SHARD_GRAD_OP", "FULL_SHARD"))
    if config.train.parallel == "replicated" and config.train.shard_ranks is not None:
        raise InputError("train.shard_ranks: given although train.parallel is replicated")


def _check_nesting(config: Config) -> None:
    width = _width(config)
    given = config.dino.nesting_dims
    if given is not None and not config.dino.MRL:
        raise InputError("dino.nesting_dims: given although dino.MRL is false; give one of them")
    if given is not None and (not given or given[0] < 1 or sorted({*given, width}) != given):
        raise InputError(
            f"dino.nesting_dims: {given} is not accepted; expected increasing widths that end with "
            f"{width}, the width of {config.student.arch}"
        )
    for key in ("dino.head_n_prototypes", "ibot.head_n_prototypes"):
        prototypes = _value(config, key)
        for dim in nesting_dims(config):
            if prototypes * dim % width or prototypes * dim < width:
                raise InputError(
                    f"{key}: {prototypes} * {dim} / {width} is no number of prototypes for the "
                    f"nested width {dim}; expected a multiple of {width // math.gcd(width, dim)}"
                )


def nesting_dims(config: Config) -> tuple[int, ...]:
    """The nested widths m_1 < .. < m_H = d of both heads."""
    if not config.dino.MRL:
        return (_width(config),)
    if config.dino.nesting_dims is not None:
        return tuple(config.dino.nesting_dims)
    return default_nesting_dims(_width(config))


def _width(config: Config) -> int:
    arch = config.student.arch
    if arch not in ARCHITECTURES:
        raise InputError(
            f"student.arch: unknown architecture '{arch}'{did_you_mean(arch, ARCHITECTURES)}; "
            f"expected one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[arch]["embed_dim"]


def _check_losses(config: Config) -> None:
    if config.dino.loss_weight == 0 and config.ibot.loss_weight == 0:
        raise InputError("dino.loss_weight and ibot.loss_weight are both 0; expected one above 0")
    if config.ibot.loss_weight == 0:
        return
    if config.ibot.mask_sample_probability == 0 or config.ibot.mask_ratio_min_max[1] == 0:
        raise InputError(
            "ibot.loss_weight is above 0 but no patch is ever masked; expected "
            "ibot.mask_sample_probability and ibot.mask_ratio_min_max[1] above 0"
        )


def _check_lengths(config: Config) -> None:
    warmup = config.optim.warmup_epochs * config.train.OFFICIAL_EPOCH_LENGTH
    if warmup > config.total_steps:
        raise InputError(
            f"optim.warmup_epochs: {config.optim.warmup_epochs} epochs of "
            f"{config.train.OFFICIAL_EPOCH_LENGTH} steps are longer than the run "
            f"({config.total_steps} steps)"
        )


def _check_start(config: Config) -> None:
    whole, backbone = config.MODEL.WEIGHTS, config.student.pretrained_weights
    if whole and backbone:
        raise InputError("MODEL.WEIGHTS and student.pretrained_weights: give one of them, not both")
