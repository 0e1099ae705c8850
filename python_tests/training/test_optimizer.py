"""Parameter groups against the golden values; clipping, skipping and the moving average."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from franca_fast.config.schema import OptimConfig
from franca_fast.models import NestedPrototypeHead, VisionTransformer
from franca_fast.training.optimizer import (
    LocalOptimizer,
    apply_step,
    clip_gradients,
    parameter_groups,
    set_schedule,
    squared_norms,
    update_teacher,
)
from franca_fast.training.schedules import StepValues

Rules = dict[str, tuple[float, float, bool]]


@pytest.fixture
def student(golden_facts: dict[str, Any]) -> nn.Module:
    backbone, head = dict(golden_facts["backbone"]), golden_facts["head"]
    del backbone["block_chunks"], backbone["layerscale"]
    module = nn.Module()
    module.backbone = VisionTransformer(**backbone)
    module.dino_head = NestedPrototypeHead(
        head["in_dim"],
        head["out_dim"],
        hidden_dim=head["hidden_dim"],
        bottleneck_dim=head["bottleneck_dim"],
    )
    return module


def rules_of(groups: list[dict[str, Any]]) -> Rules:
    return {
        name: (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
        for group in groups
        for name in group["names"]
    }


def golden_rules(golden_facts: dict[str, Any]) -> Rules:
    rules = {}
    for part, module in (("backbone", "backbone"), ("head", "dino_head")):
        for entry in golden_facts["param_groups"][part]:
            name = re.sub(r"^blocks\.\d+\.(\d+)", r"blocks.\1", entry["name"])
            rules[f"{module}.{name}"] = (
                entry["lr_multiplier"],
                entry["wd_multiplier"],
                entry["is_last_layer"],
            )
    return rules


def golden_optim(golden_facts: dict[str, Any]) -> OptimConfig:
    facts = golden_facts["param_groups"]
    return OptimConfig(
        layerwise_decay=facts["lr_decay_rate"], patch_embed_lr_mult=facts["patch_embed_lr_mult"]
    )


def test_rules_equal_the_golden_values(student: nn.Module, golden_facts: dict[str, Any]) -> None:
    found = rules_of(parameter_groups(student, golden_optim(golden_facts)))
    expected = golden_rules(golden_facts)
    assert found.keys() == expected.keys()
    for name, rule in expected.items():
        assert found[name] == pytest.approx(rule, rel=1e-5), name


def test_groups_are_fused(student: nn.Module, golden_facts: dict[str, Any]) -> None:
    groups = parameter_groups(student, golden_optim(golden_facts))
    per_module = {(name.split(".")[0], rule) for name, rule in golden_rules(golden_facts).items()}
    assert len(groups) == len(per_module)


def test_the_schedule_reaches_every_group(student: nn.Module) -> None:
    optimizer = LocalOptimizer(student, OptimConfig(layerwise_decay=0.5)).adamw
    values = StepValues(
        lr=1.0, last_layer_lr=0.25, weight_decay=0.1, momentum=0.9, teacher_temp=0.05
    )
    set_schedule(optimizer, values)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0.1 * group["wd_multiplier"]
        assert group["lr"] == (0.25 if group["is_last_layer"] else group["lr_multiplier"])


def two_layers() -> nn.Module:
    module = nn.Module()
    module.backbone = nn.Linear(3, 3, bias=False)
    module.dino_head = nn.Linear(3, 3, bias=False)
    return module


def test_each_module_is_clipped_by_its_own_norm() -> None:
    student = two_layers()
    student.backbone.weight.grad = torch.full((3, 3), 10.0)
    student.dino_head.weight.grad = torch.full((3, 3), 0.1)
    optimizer = LocalOptimizer(student, OptimConfig())
    norms = squared_norms(optimizer).sqrt()
    clip_gradients(optimizer, norms, 3.0)
    assert norms.tolist() == pytest.approx([30.0, 0.3])
    assert student.backbone.weight.grad.norm().item() == pytest.approx(3.0)
    assert student.dino_head.weight.grad.norm().item() == pytest.approx(0.3)


def test_clipping_at_zero_clips_nothing() -> None:
    student = two_layers()
    student.backbone.weight.grad = torch.full((3, 3), 10.0)
    clip_gradients(LocalOptimizer(student, OptimConfig()), torch.tensor([30.0, 0.0]), 0.0)
    assert student.backbone.weight.grad.norm().item() == pytest.approx(30.0)


def test_a_skipped_step_changes_neither_parameters_nor_state() -> None:
    student = two_layers()
    optimizer = LocalOptimizer(student, OptimConfig()).adamw
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    student.backbone.weight.grad = torch.ones(3, 3)
    apply_step(optimizer, torch.tensor(True))
    before = student.backbone.weight.clone()
    state = {k: v.clone() for k, v in optimizer.state[student.backbone.weight].items()}
    student.backbone.weight.grad = torch.full((3, 3), torch.nan)
    apply_step(optimizer, torch.tensor(False))
    assert torch.equal(student.backbone.weight, before)
    for name, value in optimizer.state[student.backbone.weight].items():
        assert torch.equal(value, state[name]), name


def test_the_teacher_moves_towards_the_student() -> None:
    teacher = [torch.ones(2), torch.zeros(3)]
    update_teacher(teacher, [torch.zeros(2), torch.ones(3)], 0.75, torch.tensor(True))
    assert teacher[0].tolist() == [0.75] * 2
    assert teacher[1].tolist() == [0.25] * 3


def test_the_teacher_stays_when_a_step_is_skipped() -> None:
    teacher = [torch.randn(5)]
    before = teacher[0].clone()
    update_teacher(teacher, [torch.randn(5)], 0.75, torch.tensor(False))
    assert torch.equal(teacher[0], before)


def test_a_teacher_equal_to_the_student_does_not_drift() -> None:
    teacher, student = [torch.full((4,), 3.7)], [torch.full((4,), 3.7)]
    for _ in range(2000):
        update_teacher(teacher, student, 0.99937, torch.tensor(True))
    assert torch.allclose(teacher[0], student[0], rtol=1e-6)
