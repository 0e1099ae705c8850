"""Checkpoints are written whole or not at all, beside the training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from franca_fast.hub.checkpoint_files import (
    Part,
    read_checkpoint,
    steps_in,
)
from franca_fast.training.checkpoints import writer as checkpoint_writer
from franca_fast.training.checkpoints.writer import (
    CheckpointError,
    CheckpointWriter,
    remove_leftovers,
)
from python_tests.hub.test_checkpoint_files import TENSORS, save, truncate, world_of


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert steps_in(tmp_path) == [3, 4]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4"]


def test_a_failed_write_keeps_the_earlier_checkpoint_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "_force", full)
    with pytest.raises(CheckpointError, match="No space left on device; the checkpoint of step 1"):
        save(tmp_path, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_a_full_disk_in_the_middle_of_a_file_is_a_clear_error(tmp_path: Path) -> None:
    # A limit on the size of files stands in for a full disk; it needs a process of its own.
    code = f"""
import resource, signal, torch
from pathlib import Path
from franca_fast.hub.checkpoint_files import Part
from franca_fast.training.checkpoints.writer import CheckpointError, CheckpointWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    writer = CheckpointWriter(Path({str(tmp_path)!r}), keep=1)
    writer.save(1, {{"w": Part(torch.zeros(100_000))}}, {{}}, "")
    writer.wait()
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "could not be written: " in done.stdout
    assert "File too large" in done.stdout
    assert "there is no earlier one" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    truncate(tmp_path / "1" / TENSORS)
    save(tmp_path, 1)
    assert read_checkpoint(tmp_path / "1").step == 1


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in (".tmp-2-99", ".removed-0-99"):
        (tmp_path / name).mkdir()
        (tmp_path / name / TENSORS).write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
    assert steps_in(tmp_path) == [1]


def test_a_checkpoint_is_written_beside_the_training(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2)
    weight = torch.zeros(4)
    writer.save(1, {"student.w": Part(weight)}, {}, "")
    weight.fill_(7.0)  # the training goes on
    writer.wait()
    assert read_checkpoint(tmp_path / "1").read("student.w").tolist() == [0.0] * 4


def test_rank_0_gives_a_checkpoint_up_when_another_rank_does_not_write(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2, world=world_of(0, 2))
    writer.save(1, {"student.w": Part(torch.zeros(4))}, {}, "")
    writer.give_up()
    with pytest.raises(CheckpointError, match="rank 1 did not write its part"):
        writer.wait()
    assert list(tmp_path.iterdir()) == []
