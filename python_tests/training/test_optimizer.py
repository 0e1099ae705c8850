"""Parameter groups against the golden values; the update of student and teacher."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca_fast.config.schema import OptimConfig
from franca_fast.models import NestedPrototypeHead, VisionTransformer
from franca_fast.training.optimizer import (
    LocalOptimizer,
    apply_step,
    clip_factors,
    parameter_groups,
    set_schedule,
    squared_norms,
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


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def step(
    student: nn.Module,
    optimizer: LocalOptimizer,
    teacher: dict[str, Tensor],
    *,
    clip: Tensor | None = None,
    finite: bool = True,
) -> None:
    flag = torch.tensor(finite)
    apply_step(optimizer, tensors(student), teacher, clip=clip, momentum=0.75, finite=flag)


def test_each_module_is_clipped_by_its_own_norm() -> None:
    student = two_layers()
    student.backbone.weight.grad = torch.full((3, 3), 10.0)
    student.dino_head.weight.grad = torch.full((3, 3), 0.1)
    optimizer = LocalOptimizer(student, OptimConfig())
    norms = squared_norms(optimizer).sqrt()
    assert norms.tolist() == pytest.approx([30.0, 0.3])
    factors = clip_factors(norms, 3.0)
    assert factors is not None and factors.tolist() == pytest.approx([0.1, 1.0])
    step(student, optimizer, tensors(two_layers()), clip=factors)
    # The first moment has taken a tenth of the gradient.
    for name, expected in (("backbone.weight", 3.0), ("dino_head.weight", 0.3)):
        moment = optimizer.state(name)["exp_avg"]
        assert moment.norm().item() == pytest.approx(0.1 * expected), name


def test_clipping_at_zero_clips_nothing() -> None:
    assert clip_factors(torch.tensor([30.0, 0.0]), 0.0) is None


def test_every_parameter_has_the_rates_of_its_group() -> None:
    student = two_layers()
    optimizer = LocalOptimizer(student, OptimConfig())
    for group, lr in zip(optimizer.adamw.param_groups, (0.5, 0.0), strict=True):
        group["lr"], group["weight_decay"] = lr, 0.5
    before = {name: parameter.clone() for name, parameter in tensors(student).items()}
    for parameter in student.parameters():
        parameter.grad = torch.zeros(3, 3)
    step(student, optimizer, tensors(two_layers()))
    assert torch.equal(student.backbone.weight, 0.75 * before["backbone.weight"])
    assert torch.equal(student.dino_head.weight, before["dino_head.weight"])


def test_a_skipped_step_changes_neither_networks_nor_state() -> None:
    student, teacher = two_layers(), tensors(two_layers())
    optimizer = LocalOptimizer(student, OptimConfig())
    for group in optimizer.adamw.param_groups:
        group["lr"] = 0.1
    student.backbone.weight.grad = torch.ones(3, 3)
    step(student, optimizer, teacher)
    state = optimizer.state("backbone.weight")
    changed = [*student.parameters(), *teacher.values(), *state.values()]
    before = [tensor.clone() for tensor in changed]
    student.backbone.weight.grad = torch.full((3, 3), torch.nan)
    step(student, optimizer, teacher, finite=False)
    assert all(map(torch.equal, changed, before))


def test_the_teacher_moves_towards_the_updated_student_with_or_without_a_gradient() -> None:
    student, teacher = two_layers(), tensors(two_layers())
    before = {name: tensor.clone() for name, tensor in teacher.items()}
    optimizer = LocalOptimizer(student, OptimConfig())
    for group in optimizer.adamw.param_groups:
        group["lr"] = 0.1
    student.backbone.weight.grad = torch.ones(3, 3)
    step(student, optimizer, teacher)
    for name, parameter in student.named_parameters():
        expected = 0.75 * before[name] + 0.25 * parameter
        torch.testing.assert_close(teacher[name], expected, msg=name)
    assert list(optimizer.adamw.state) == [student.backbone.weight]


def test_the_state_is_that_of_pytorchs_optimizer() -> None:
    student = two_layers()
    optimizer = LocalOptimizer(student, OptimConfig())
    for parameter in student.parameters():
        parameter.grad = torch.randn(3, 3)
    step(student, optimizer, tensors(two_layers()))
    twin = torch.optim.AdamW(two_layers().parameters(), fused=True)
    for parameter in twin.param_groups[0]["params"]:
        parameter.grad = torch.zeros(3, 3)
    twin.step()
    ours, theirs = (
        {key: (x.shape, x.dtype) for key, x in next(iter(adamw.state.values())).items()}
        for adamw in (optimizer.adamw, twin)
    )
    assert ours == theirs
