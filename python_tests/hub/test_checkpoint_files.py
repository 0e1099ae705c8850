"""Checkpoints are verified when they are read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.hub.checkpoint_files import (
    DamagedCheckpoint,
    Part,
    file_entry,
    load_newest,
    read_checkpoint,
)
from franca_fast.training.checkpoints.writer import (
    CheckpointWriter,
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


def world_of(rank: int, size: int) -> World:
    """A rank that needs no process group, as the writer asks only who it is."""
    world = World()
    world.rank, world.size = rank, size
    return world


def _write_as(folder: Path, pieces: list[torch.Tensor], n_rows: int) -> None:
    """Writes a checkpoint as ranks that hold the pieces would."""
    writers, start = [], 0
    for rank, rows in enumerate(pieces):
        writer = CheckpointWriter(folder, keep=2, world=world_of(rank, len(pieces)))
        writer.save(1, {"student.w": Part(rows, start, n_rows)}, {}, "")
        start += len(rows)
        writers.append(writer)
    for writer in reversed(writers):
        writer.wait()
