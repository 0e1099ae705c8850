"""What a checkpoint holds besides the networks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.training.optimizer import build_optimizer
from franca_fast.training.state import (
    load_networks_state,
    load_optimizer_state,
    networks_state,
    optimizer_state,
    random_state,
    set_random_state,
)
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.training.tiny import tiny_config


def test_random_state_survives_a_file_that_runs_no_code(tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / "random.pt")
    drawn = torch.rand(3), np.random.rand(3), random.random()
    set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    assert torch.equal(torch.rand(3), drawn[0])
    assert (np.random.rand(3) == drawn[1]).all()
    assert random.random() == drawn[2]


def test_networks_go_round() -> None:
    config = tiny_config("train.centering=centering")
    first, second = StudentTeacher(config), StudentTeacher(config)
    assert first.dino_loss.center is not None
    first.dino_loss.center.fill_(3.0)
    load_networks_state(second, networks_state(first))
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_networks_of_another_shape_are_refused() -> None:
    other = networks_state(StudentTeacher(tiny_config("dino.head_n_prototypes=32")))
    with pytest.raises(InputError, match="do not fit"):
        load_networks_state(StudentTeacher(tiny_config()), other)


def test_optimizer_state_goes_round_by_name() -> None:
    config = tiny_config()
    models = StudentTeacher(config), StudentTeacher(config)
    first, second = (build_optimizer(model.student, config.optim) for model in models)
    for parameter in models[0].student.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    state = optimizer_state(first, models[0].student)
    load_optimizer_state(second, models[1].student, state)
    assert "dino_head.last_layers.0.weight_v" in state
    for name, parameter in models[1].student.named_parameters():
        for key, tensor in second.state[parameter].items():
            assert torch.equal(tensor, state[name][key]), (name, key)


def test_optimizer_state_of_another_network_is_refused() -> None:
    config = tiny_config()
    model = StudentTeacher(config)
    optimizer = build_optimizer(model.student, config.optim)
    state = {"backbone.absent": {"exp_avg": torch.zeros(1)}}
    with pytest.raises(InputError, match=r"backbone\.absent"):
        load_optimizer_state(optimizer, model.student, state)
