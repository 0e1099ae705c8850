"""From steps to lines, points and counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from franca_fast.data.accounting import ImageAccount
from franca_fast.training.distributed.world import World
from franca_fast.training.reporting.recorder import Recorder
from franca_fast.training.reporting.stopwatch import Stopwatch
from franca_fast.training.run_directory import RunDirectory
from franca_fast.training.schedules import StepValues
from franca_fast.training.step import StepOutput
from python_tests.training.tiny import random_batch, tiny_config

VALUES = StepValues(lr=0.1, last_layer_lr=0.0, weight_decay=0.2, momentum=0.9, teacher_temp=0.05)


def output(*, finite: bool = True) -> StepOutput:
    return StepOutput(torch.tensor(1.0), {}, {}, torch.tensor(finite), {})


def recorder_in(path: Path, **arguments: Any) -> Recorder:
    config = tiny_config("train.log_every=2")
    directory = RunDirectory(path, config, resume=True)
    directory.create()
    device = torch.device("cpu")
    stopwatch = Stopwatch([], device, 2)
    return Recorder(directory, device, World(), stopwatch, config=config, **arguments)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return recorder_in(tmp_path / "run", last_step=-1, counters={})


def add(recorder: Recorder, step: int, *, finite: bool = True, skipped: int = 0) -> None:
    batch = random_batch(tiny_config())
    batch.account = ImageAccount(found=9, used=4)
    batch.account.update({"skipped": {"truncated": skipped}, "left_out": {"hidden file": 1}})
    recorder.add(step, output(finite=finite), VALUES, [batch], waited=0.0)


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


def test_what_became_of_images_is_counted(recorder: Recorder) -> None:
    add(recorder, 1, skipped=2)
    add(recorder, 2, skipped=1)
    expected = {
        "found_samples": 18,
        "used_samples": 8,
        "skipped_samples": 3,
        "left_out_samples": 2,
    }
    assert expected.items() <= recorder.flush().items()
    assert expected.items() <= recorder.counters().items()


def test_counters_go_on_after_a_resume(recorder: Recorder, tmp_path: Path) -> None:
    add(recorder, 1, finite=False, skipped=2)
    recorder.flush()
    resumed = recorder_in(tmp_path / "other", last_step=1, counters=recorder.counters())
    add(resumed, 2, finite=False, skipped=1)
    line = resumed.flush()
    assert (line["skipped_steps"], line["skipped_samples"]) == (2, 3)
    assert (line["found_samples"], line["used_samples"], line["left_out_samples"]) == (18, 8, 2)
    assert resumed.skipped_in_row == 2
