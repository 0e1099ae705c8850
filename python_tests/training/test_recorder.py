"""From steps to lines, points and counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from franca_fast.training.recorder import Recorder
from franca_fast.training.run_directory import RunDirectory
from franca_fast.training.schedules import StepValues
from franca_fast.training.step import StepOutput
from python_tests.training.tiny import random_batch, tiny_config

VALUES = StepValues(lr=0.1, last_layer_lr=0.0, weight_decay=0.2, momentum=0.9, teacher_temp=0.05)


def output(*, finite: bool = True) -> StepOutput:
    return StepOutput(torch.tensor(1.0), {}, {}, torch.tensor(finite), {})


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    directory = RunDirectory(tmp_path / "run", tiny_config(), resume=True)
    directory.create()
    return Recorder(
        directory,
        torch.device("cpu"),
        last_step=-1,
        counters={},
        log_every=2,
        tensorboard=False,
    )


def add(recorder: Recorder, step: int, *, finite: bool = True, skipped: int = 0) -> None:
    batch = random_batch(tiny_config())
    batch.skipped = {"truncated": skipped} if skipped else {}
    recorder.add(step, output(finite=finite), VALUES, batch, waited=0.0)


def test_nothing_is_written_before_a_flush(recorder: Recorder, tmp_path: Path) -> None:
    add(recorder, 1)
    add(recorder, 2)
    path = tmp_path / "run" / "metrics.jsonl"
    assert path.read_text() == ""
    recorder.flush()
    assert [json.loads(line)["step"] for line in path.open()] == [1, 2]


def test_a_line_holds_the_schedules_values(recorder: Recorder) -> None:
    add(recorder, 1)
    line = recorder.flush()
    assert (line["lr"], line["weight_decay"], line["momentum"]) == (0.1, 0.2, 0.9)


def test_skipped_steps_are_counted_in_all_and_in_a_row(recorder: Recorder) -> None:
    for step, finite in enumerate([False, True, False, False], start=1):
        add(recorder, step, finite=finite)
    assert recorder.flush()["skipped_steps"] == 3
    assert recorder.skipped_in_row == 2


def test_skipped_samples_are_counted(recorder: Recorder) -> None:
    add(recorder, 1, skipped=2)
    add(recorder, 2, skipped=1)
    assert recorder.flush()["skipped_samples"] == 3
    assert recorder.counters()["skipped_samples"] == {"truncated": 3}


def test_counters_go_on_after_a_resume(recorder: Recorder, tmp_path: Path) -> None:
    add(recorder, 1, finite=False, skipped=2)
    recorder.flush()
    directory = RunDirectory(tmp_path / "other", tiny_config(), resume=True)
    directory.create()
    resumed = Recorder(
        directory,
        torch.device("cpu"),
        last_step=1,
        counters=recorder.counters(),
        log_every=2,
        tensorboard=False,
    )
    add(resumed, 2, finite=False, skipped=1)
    line = resumed.flush()
    assert (line["skipped_steps"], line["skipped_samples"]) == (2, 3)
    assert resumed.skipped_in_row == 2
