"""What a checkpoint holds besides the networks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.hub.checkpoint_files import Checkpoint, Part, read_checkpoint
from franca_fast.training.checkpoints.state import (
    checkpoint_tensors,
    load_checkpoint,
    random_state,
    set_random_state,
)
from franca_fast.training.distributed.parallelize import Layout
from franca_fast.training.distributed.world import World
from franca_fast.training.optimizer import LocalOptimizer
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.training.tiny import save_checkpoint, tiny_config


def test_random_state_survives_a_file_that_runs_no_code(tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / "random.pt")
    drawn = torch.rand(3), np.random.rand(3), random.random()
    set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    assert torch.equal(torch.rand(3), drawn[0])
    assert (np.random.rand(3) == drawn[1]).all()
    assert random.random() == drawn[2]


class Case:
    """Networks with an optimizer that has done a step, on one process."""

    def __init__(self, *overrides: str, step: bool = True) -> None:
        config = tiny_config("train.centering=centering", *overrides)
        self.model = StudentTeacher(config)
        self.optimizer = LocalOptimizer(self.model.student, config.optim)
        self.layout = Layout(World())
        if step:
            for parameter in self.model.student.parameters():
                parameter.grad = torch.randn_like(parameter)
            self.optimizer.adamw.step()
            self.model.dino_loss.center.fill_(3.0)

    def save(self, folder: Path, training: dict[str, Any] | None = None) -> Checkpoint:
        tensors = checkpoint_tensors(self.model, self.optimizer, self.layout)
        return read_checkpoint(save_checkpoint(folder, 1, tensors, training))

    def load(self, checkpoint: Checkpoint) -> None:
        load_checkpoint(checkpoint, self.model, self.optimizer, self.layout)


def test_networks_and_optimizer_go_round(tmp_path: Path) -> None:
    first, second = Case(), Case(step=False)
    second.load(first.save(tmp_path))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    for name, shard in first.optimizer.shards.items():
        state = second.optimizer.adamw.state[second.optimizer.shards[name]]
        for key, tensor in first.optimizer.adamw.state[shard].items():
            assert torch.equal(state[key], tensor), (name, key)


def test_a_checkpoint_lists_heads_by_name(tmp_path: Path) -> None:
    shapes = Case().save(tmp_path).shapes
    for network in ("student", "teacher", "optimizer.exp_avg"):
        assert shapes[f"{network}.dino_head.last_layers.4.weight_v"] == (64, 16)


def test_networks_of_another_shape_are_refused(tmp_path: Path) -> None:
    other = Case("dino.head_n_prototypes=32").save(tmp_path)
    with pytest.raises(InputError, match=r"do not fit.*has shape"):
        Case().load(other)


def test_optimizer_state_of_another_network_is_refused(tmp_path: Path) -> None:
    case = Case()
    parts = checkpoint_tensors(case.model, case.optimizer, case.layout)
    parts["optimizer.exp_avg.backbone.absent"] = Part(torch.zeros(1))
    save_checkpoint(tmp_path, 1, parts)
    with pytest.raises(InputError, match=r"backbone\.absent"):
        case.load(read_checkpoint(tmp_path / "1"))
