"""Schedules against the golden values, and their edges."""

from __future__ import annotations

import math
from typing import Any

import pytest

from franca_fast.config.schema import Config
from franca_fast.errors import InputError
from franca_fast.training.schedules import CosineSchedule, Schedules, peak_lr


def golden_run() -> Schedules:
    """The configuration behind the golden schedules: 50 steps, 10 of warm-up, temperature 30."""
    config = Config()
    config.train.OFFICIAL_EPOCH_LENGTH = 1
    config.optim.epochs, config.optim.warmup_epochs = 50, 10
    config.optim.base_lr, config.optim.min_lr = 1e-3, 1e-6
    config.optim.weight_decay, config.optim.weight_decay_end = 0.04, 0.4
    config.teacher.momentum_teacher = 0.994
    config.teacher.warmup_teacher_temp_epochs = 30
    return Schedules(config, global_batch_size=1024)


@pytest.mark.parametrize(
    ("golden_name", "name"),
    [
        ("lr", "lr"),
        ("wd", "weight_decay"),
        ("momentum", "momentum"),
        ("teacher_temp", "teacher_temp"),
    ],
)
def test_schedules_equal_the_golden_values(
    golden_facts: dict[str, Any], golden_name: str, name: str
) -> None:
    expected = golden_facts["schedules"][golden_name]
    schedules = golden_run()
    found = [getattr(schedules.at(step), name) for step in range(len(expected))]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_last_layer_is_frozen_and_then_follows_the_learning_rate() -> None:
    schedules = golden_run()
    assert schedules.at(0).last_layer_lr == 0.0
    assert schedules.at(1).last_layer_lr == schedules.at(1).lr > 0
    assert schedules.last_layer_lr.at(49) == schedules.lr.at(49)


def test_after_its_end_a_schedule_stays_at_its_final_value() -> None:
    schedule = CosineSchedule(1.0, 0.25, total=10)
    assert schedule.at(10) == schedule.at(1000) == 0.25


def test_one_warmup_step_begins_at_the_start_value() -> None:
    schedule = CosineSchedule(1.0, 0.0, total=3, warmup=1, start=0.5)
    assert [schedule.at(0), schedule.at(1)] == [0.5, 1.0]


def test_a_warmup_longer_than_the_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="warmup: 4 steps"):
        CosineSchedule(1.0, 0.0, total=3, warmup=4)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("sqrt_wrt_1024", 0.004 * math.sqrt(0.25)), ("linear_wrt_256", 0.004)],
)
def test_peak_learning_rate_follows_the_batch(rule: str, expected: float) -> None:
    config = Config()
    config.optim.scaling_rule = rule
    assert peak_lr(config, 256) == pytest.approx(expected)


def test_a_given_learning_rate_is_not_scaled() -> None:
    config = Config()
    config.optim.lr = 0.01
    assert peak_lr(config, 256) == 0.01
