"""Values that change over a run: learning rate, weight decay, EMA momentum, temperature.

All are the same curve: frozen at 0, a linear warm-up, then half a cosine to the final value. They
are functions of the step alone, so nothing of them needs to be in a checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from franca_fast.config.schema import Config
from franca_fast.errors import InputError


@dataclass(frozen=True)
class CosineSchedule:
    """A value for every step: 0 while frozen, a linear warm-up, then a cosine.

    With w warm-up steps from `start` to `base`, both ends included, and n = total - w steps after
    them, step w + i has the value final + (base - final) (1 + cos(pi i / n)) / 2; from `total` on
    it is `final`. The first `frozen` steps are 0 instead.

    Args:
        base: value at the end of the warm-up.
        final: value that the cosine ends with.
        total: steps of the whole schedule.
        warmup: steps of the warm-up, at most `total`.
        start: value of the first warm-up step.
        frozen: steps at the beginning whose value is 0.

    Raises:
        InputError: a warm-up longer than the schedule.

    Example:
        >>> [CosineSchedule(1.0, 0.0, total=4, warmup=2).at(step) for step in range(5)]
        [0.0, 1.0, 1.0, 0.5, 0.0]
    """

    base: float
    final: float
    total: int
    warmup: int = 0
    start: float = 0.0
    frozen: int = 0

    def __post_init__(self) -> None:
        if self.warmup > self.total:
            raise InputError(f"warmup: {self.warmup} steps are more than the total, {self.total}")

    def at(self, step: int) -> float:
        """The value at a step, counted from 0."""
        if step < self.frozen:
            return 0.0
        if step < self.warmup:
            # As numpy.linspace: both ends belong to the warm-up.
            share = step / (self.warmup - 1) if self.warmup > 1 else 0.0
            return self.start + (self.base - self.start) * share
        if step >= self.total:
            return self.final
        angle = math.pi * (step - self.warmup) / (self.total - self.warmup)
        return self.final + 0.5 * (self.base - self.final) * (1.0 + math.cos(angle))


@dataclass(frozen=True)
class StepValues:
    """What the schedules give for one step."""

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    teacher_temp: float


class Schedules:
    """The schedules of a run.

    Args:
        config: the run's configuration.
        global_batch_size: images per step over all processes, for the learning-rate rule.
    """

    def __init__(self, config: Config, global_batch_size: int) -> None:
        optim, teacher, total = config.optim, config.teacher, config.total_steps
        epoch = config.train.OFFICIAL_EPOCH_LENGTH
        peak, warmup = peak_lr(config, global_batch_size), optim.warmup_epochs * epoch
        frozen = optim.freeze_last_layer_epochs * epoch
        self.lr = CosineSchedule(peak, optim.min_lr, total, warmup)
        self.last_layer_lr = CosineSchedule(peak, optim.min_lr, total, warmup, frozen=frozen)
        self.weight_decay = CosineSchedule(optim.weight_decay, optim.weight_decay_end, total)
        self.momentum = CosineSchedule(
            teacher.momentum_teacher, teacher.final_momentum_teacher, total
        )
        temperature_steps = teacher.warmup_teacher_temp_epochs * epoch
        self.teacher_temp = CosineSchedule(
            teacher.teacher_temp,
            teacher.teacher_temp,
            temperature_steps,
            temperature_steps,
            teacher.warmup_teacher_temp,
        )

    def at(self, step: int) -> StepValues:
        """The values of a step, counted from 0."""
        return StepValues(
            lr=self.lr.at(step),
            last_layer_lr=self.last_layer_lr.at(step),
            weight_decay=self.weight_decay.at(step),
            momentum=self.momentum.at(step),
            teacher_temp=self.teacher_temp.at(step),
        )


def peak_lr(config: Config, global_batch_size: int) -> float:
    """The learning rate at the end of the warm-up: `optim.lr`, or `base_lr` by its scaling rule."""
    optim = config.optim
    if optim.lr > 0:
        return optim.lr
    if optim.scaling_rule == "linear_wrt_256":
        return optim.base_lr * global_batch_size / 256.0
    return optim.base_lr * math.sqrt(global_batch_size / 1024.0)
