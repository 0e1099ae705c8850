"""Checkpoints: whole or not at all, verified when read."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.training.checkpoints import writer as checkpoint_writer
from franca_fast.training.checkpoints.format import (
    DamagedCheckpoint,
    Part,
    file_entry,
    load_newest,
    read_checkpoint,
    steps_in,
)
from franca_fast.training.checkpoints.writer import (
    CheckpointError,
    CheckpointWriter,
    remove_leftovers,
)
from franca_fast.training.distributed.world import World
from python_tests.training.tiny import save_checkpoint

TENSORS = "rank-00000.safetensors"


def save(folder: Path, step: int, keep: int = 3) -> Path:
    return save_checkpoint(
        folder,
        step,
        tensors={"student.weight": Part(torch.full((300,), float(step)))},
        training={"loader": {"position": step, "key": b"ab"}, "random": (1, [2, 3], None)},
        config="train: {}\n",
        keep=keep,
    )


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_checkpoint_reads_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found = load_newest(tmp_path)
    assert found is not None
    assert (found.step, found.path, found.config) == (7, tmp_path / "7", "train: {}\n")
    assert torch.equal(found.model["student"]["weight"], torch.full((300,), 7.0))
    assert found.training == {"loader": {"position": 7, "key": b"ab"}, "random": (1, [2, 3], None)}


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "missing") is None


def test_the_newest_step_counts_and_not_the_name(tmp_path: Path) -> None:
    save(tmp_path, 9)
    save(tmp_path, 10)
    found = load_newest(tmp_path)
    assert found is not None
    assert found.step == 10


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert steps_in(tmp_path) == [3, 4]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4"]


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
@pytest.mark.parametrize("name", [TENSORS, "training.pt", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning_that_names_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, name: str
) -> None:
    if damage is alter and name == "manifest.json":
        damage = truncate
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "2" / name)
    with caplog.at_level(logging.WARNING):
        found = load_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert f"'{tmp_path / '2'}' is damaged" in caplog.text
    assert f"using checkpoint '{tmp_path / '1'}' instead" in caplog.text


def test_damaged_checkpoints_only_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    truncate(tmp_path / "1" / TENSORS)
    with pytest.raises(InputError, match=r"rank-00000.safetensors has \d+ bytes instead of"):
        load_newest(tmp_path)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save({"loader": Path("/")}, path / "training.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["training.pt"] = file_entry(path / "training.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(path)


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
from franca_fast.training.checkpoints.format import Part
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


def test_rows_from_several_ranks_are_put_together(tmp_path: Path) -> None:
    whole = torch.arange(21.0).reshape(7, 3)
    _write_as(tmp_path, [whole[:4], whole[4:]], n_rows=7)
    checkpoint = read_checkpoint(tmp_path / "1")
    assert checkpoint.shapes == {"student.w": (7, 3)}
    assert torch.equal(checkpoint.read("student.w"), whole)
    for start in range(7):
        for stop in range(start, 8):
            rows = checkpoint.read("student.w", slice(start, min(stop, 7)))
            assert torch.equal(rows, whole[start : min(stop, 7)])


def test_missing_rows_are_noticed(tmp_path: Path) -> None:
    _write_as(tmp_path, [torch.zeros(3, 2)], n_rows=7)
    checkpoint = read_checkpoint(tmp_path / "1")
    assert checkpoint.read("student.w", slice(0, 3)).shape == (3, 2)
    with pytest.raises(DamagedCheckpoint, match=r"lacks rows of 'student\.w'"):
        checkpoint.read("student.w", slice(2, 5))


def test_a_checkpoint_is_written_beside_the_training(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2)
    weight = torch.zeros(4)
    writer.save(1, {"student.w": Part(weight)}, {}, "")
    weight.fill_(7.0)  # the training goes on
    writer.wait()
    assert read_checkpoint(tmp_path / "1").read("student.w").tolist() == [0.0] * 4


def test_rank_0_gives_a_checkpoint_up_when_another_rank_does_not_write(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2, world=_world(0, 2))
    writer.save(1, {"student.w": Part(torch.zeros(4))}, {}, "")
    writer.give_up()
    with pytest.raises(CheckpointError, match="rank 1 did not write its part"):
        writer.wait()
    assert list(tmp_path.iterdir()) == []


def _world(rank: int, size: int) -> World:
    """A rank that needs no process group, as the writer asks only who it is."""
    world = World()
    world.rank, world.size = rank, size
    return world


def _write_as(folder: Path, pieces: list[torch.Tensor], n_rows: int) -> None:
    """Writes a checkpoint as ranks that hold the pieces would."""
    writers, start = [], 0
    for rank, rows in enumerate(pieces):
        writer = CheckpointWriter(folder, keep=2, world=_world(rank, len(pieces)))
        writer.save(1, {"student.w": Part(rows, start, n_rows)}, {}, "")
        start += len(rows)
        writers.append(writer)
    for writer in reversed(writers):
        writer.wait()
