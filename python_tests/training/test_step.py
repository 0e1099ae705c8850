"""One step: learning, skipping what is not finite, and drawing the same numbers again."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca_fast.data import Batch
from franca_fast.models import nested_head
from franca_fast.ops import normalized_prototypes
from franca_fast.training.distributed.parallelize import Layout
from franca_fast.training.distributed.world import World
from franca_fast.training.optimizer import LocalOptimizer
from franca_fast.training.precision import choose_precision
from franca_fast.training.schedules import StepValues
from franca_fast.training.step import StepOutput, TrainStep, seed_step
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.training.tiny import random_batch, tiny_config

VALUES = StepValues(lr=1e-3, last_layer_lr=1e-3, weight_decay=0.04, momentum=0.9, teacher_temp=0.05)


class Case:
    def __init__(self, *overrides: str) -> None:
        torch.manual_seed(0)
        self.config = tiny_config(*overrides)
        self.model = StudentTeacher(self.config).train()
        self.optimizer = LocalOptimizer(self.model.student, self.config.optim)
        self.train_step = TrainStep(
            self.model,
            self.optimizer,
            choose_precision(self.config, torch.device("cpu")),
            Layout(World()),
            clip_grad=self.config.optim.clip_grad,
            seed=0,
        )

    def step(
        self, step: int, *batches: Batch, values: StepValues = VALUES, diagnose: bool = False
    ) -> StepOutput:
        return self.train_step(step, batches, values, diagnose=diagnose)

    def state(self) -> dict[str, Any]:
        optimizer = self.optimizer.adamw.state_dict()["state"]
        tensors = {f"{i}.{k}": v for i, entry in optimizer.items() for k, v in entry.items()}
        return copy.deepcopy({**self.model.state_dict(), **tensors})


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_steps_on_one_batch_lower_its_loss() -> None:
    case = Case("student.drop_path_rate=0")
    batch = random_batch(case.config)
    losses = [case.step(i, batch).loss.item() for i in range(12)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_steps_in_low_precision_lower_the_loss_too(precision: str) -> None:
    case = Case(
        "student.drop_path_rate=0",
        f"compute_precision.autocast={precision}",
        "dino.normalize_bottleneck=false",
    )
    batch = random_batch(case.config)
    outputs = [case.step(i, batch) for i in range(16)]
    # The scaler of fp16 finds its scale by skipping the first steps.
    finite = [output.loss.item() for output in outputs if output.finite]
    assert len(finite) > 8
    assert finite[-1] < finite[0] - 0.1


def test_micro_batches_share_what_is_made_of_prototypes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[torch.dtype] = []

    def counted(v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
        made.append(dtype)
        return normalized_prototypes(v, g, dtype)

    monkeypatch.setattr(nested_head, "normalized_prototypes", counted)
    case = Case("compute_precision.autocast=bf16")
    batch, counts = random_batch(case.config), []
    for n_batches in (1, 3):
        made.clear()
        case.step(0, *[batch] * n_batches)
        counts.append(len(made))
    assert counts[0] == counts[1] > 0


def test_parameters_stay_float32_under_autocast() -> None:
    case = Case("compute_precision.autocast=bf16")
    case.step(0, random_batch(case.config))
    assert {tensor.dtype for tensor in case.model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "centering"])
def test_a_finite_step_changes_student_teacher_and_optimizer(centering: str) -> None:
    case = Case(f"train.centering={centering}")
    case.step(0, random_batch(case.config))
    before = case.state()
    output = case.step(1, random_batch(case.config, seed=1))
    after = case.state()
    assert output.finite
    for name in (
        "student.backbone.norm.weight",
        "teacher.backbone.norm.weight",
        "student.ibot_head.last_layers.4.weight_v",
        "0.exp_avg",
        *(["dino_loss.center", "ibot_loss.center"] if centering == "centering" else []),
    ):
        assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "centering"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_changes_nothing(centering: str, bad: float) -> None:
    case = Case(f"train.centering={centering}")
    case.step(0, random_batch(case.config))
    before = case.state()
    batch = random_batch(case.config, seed=1)
    batch.global_crops[3, 0, 0, 0] = bad
    output = case.step(1, batch)
    assert not output.finite
    assert same(before, case.state())


def test_a_non_finite_gradient_changes_nothing() -> None:
    case = Case()
    case.step(0, random_batch(case.config))
    before = case.state()
    weight = case.model.student.backbone.norm.weight
    handle = weight.register_hook(lambda gradient: gradient * float("inf"))
    output = case.step(1, random_batch(case.config, seed=1))
    handle.remove()
    assert output.loss.isfinite()
    assert not output.finite
    assert same(before, case.state())


def test_training_goes_on_after_a_skipped_step() -> None:
    case, other = Case(), Case()
    bad = random_batch(case.config, seed=1)
    bad.global_crops.fill_(float("nan"))
    case.step(0, bad)
    good = random_batch(case.config)
    assert torch.equal(case.step(1, good).loss, other.step(1, good).loss)
    assert same(case.state(), other.state())


def test_a_step_draws_the_same_numbers_again_whatever_was_drawn_between() -> None:
    case, other = Case(), Case()
    batch = random_batch(case.config)
    first = case.step(5, batch)
    torch.randn(100)
    assert torch.equal(other.step(5, batch).loss, first.loss)


def test_steps_and_seeds_draw_different_numbers() -> None:
    drawn = []
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        seed_step(seed, step)
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert all(len(set(column)) == 3 for column in zip(*drawn, strict=True))


def test_statistics_come_when_asked_for() -> None:
    case = Case()
    batch = random_batch(case.config)
    assert case.step(0, batch).statistics == {}
    found = case.step(1, batch, diagnose=True).statistics
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "dino_entropy": (5,),
        "dino_used_prototypes": (5,),
        "ibot_entropy": (5,),
        "ibot_used_prototypes": (5,),
    }


def test_gradients_are_clipped_module_by_module() -> None:
    case = Case("optim.clip_grad=0.01")
    output = case.step(0, random_batch(case.config))
    assert output.norms["backbone"] > 0.01
    for names in case.optimizer.modules.values():
        # The first moment of the first step is a tenth of the clipped gradient.
        moments = [case.optimizer.state(name)["exp_avg"].square().sum() for name in names]
        assert torch.stack(moments).sum().sqrt() <= 0.00101
