"""Folders of runs with checkpoints, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import torch

from franca_fast.config.files import to_yaml
from franca_fast.config.schema import Config
from franca_fast.hub.checkpoint_files import Part
from franca_fast.training.checkpoints.writer import CheckpointWriter
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.hub.test_checkpoint_files import world_of


def network_of(config: Config, seed: int = 0) -> StudentTeacher:
    """Student and teacher that differ, with every weight drawn."""
    torch.manual_seed(seed)
    model = StudentTeacher(config)
    for parameter in model.parameters():
        parameter.data.normal_()
    return model.eval()


def parts_of(model: StudentTeacher, start: float = 0.0, stop: float = 1.0) -> dict[str, Part]:
    """What a rank writes that holds this range of all rows, and an optimizer beside them."""
    parts = {}
    for name, tensor in model.state_dict().items():
        rows = tensor.shape[0] if tensor.dim() else 0
        first, last = int(start * rows), int(stop * rows)
        if (start, stop) == (0.0, 1.0) or not rows:
            parts[name] = Part(tensor)
        elif last > first:
            parts[name] = Part(tensor[first:last], first, rows)
        parts[f"optimizer.exp_avg.{name}"] = Part(torch.zeros(1))
    return parts


def write_run(folder: Path, model: StudentTeacher, config: Config, *steps: int) -> Path:
    """A run's folder with checkpoints, killed before its first export."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    for step in steps:
        writer = CheckpointWriter(folder / "checkpoints", keep=9)
        writer.save(step, parts_of(model), {}, to_yaml(config))
        writer.wait()
    return folder


def write_sharded(folder: Path, model: StudentTeacher, config: Config) -> Path:
    cuts = [0.0, 0.3, 0.8, 1.0]
    writers = []
    for rank in range(3):
        writer = CheckpointWriter(folder / "checkpoints", keep=1, world=world_of(rank, 3))
        writer.save(1, parts_of(model, cuts[rank], cuts[rank + 1]), {}, to_yaml(config))
        writers.append(writer)
    for writer in reversed(writers):
        writer.wait()
    return folder
