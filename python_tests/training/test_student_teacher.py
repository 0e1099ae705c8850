"""Student and teacher: shapes, losses of every form, and the packed forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from franca_fast.models import VisionTransformer
from franca_fast.training.student_teacher import Losses, StudentTeacher
from python_tests.training.tiny import random_batch, tiny_config

FORMS = [
    [],
    ["ibot.separate_head=false"],
    ["train.centering=centering"],
    ["train.centering=centering", "ibot.separate_head=false"],
    ["dino.MRL=false"],
    ["dino.MRL=false", "train.centering=centering", "ibot.separate_head=false"],
    ["dino.nesting_dims=[4,8,32]"],
    ["dino.projection=full"],
    ["dino.normalize_bottleneck=false"],
    ["crops.local_crops_number=0"],
    ["student.num_register_tokens=2"],
]


def loss_of(*overrides: str) -> tuple[StudentTeacher, Losses]:
    torch.manual_seed(0)
    config = tiny_config("student.drop_path_rate=0", *overrides)
    model = StudentTeacher(config).train()
    return model, model(random_batch(config), 0.05)


@pytest.mark.parametrize("overrides", FORMS, ids=" ".join)
def test_every_parameter_of_the_student_gets_a_finite_gradient(overrides: list[str]) -> None:
    model, losses = loss_of(*overrides)
    losses.total.backward()
    for name, parameter in model.student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_teacher_gets_no_gradient() -> None:
    model, losses = loss_of()
    losses.total.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_the_total_is_the_sum_of_the_terms() -> None:
    _, losses = loss_of()
    assert set(losses.terms) == {"dino_global", "dino_local", "ibot", "koleo"}
    total = sum(term.sum() for term in losses.terms.values())
    assert torch.allclose(losses.total.detach(), torch.as_tensor(total))


@pytest.mark.parametrize(
    ("key", "term"),
    [
        ("dino.loss_weight", "dino_global"),
        ("ibot.loss_weight", "ibot"),
        ("dino.koleo_loss_weight", "koleo"),
    ],
)
def test_weights_scale_their_terms(key: str, term: str) -> None:
    _, once = loss_of(f"{key}=1")
    _, twice = loss_of(f"{key}=2")
    assert torch.allclose(twice.terms[term], 2 * once.terms[term])


@pytest.mark.parametrize(
    ("override", "absent"),
    [
        ("dino.loss_weight=0", {"dino_global", "dino_local"}),
        ("ibot.loss_weight=0", {"ibot"}),
        ("dino.koleo_loss_weight=0", {"koleo"}),
    ],
)
def test_a_weight_of_zero_leaves_its_term_out(override: str, absent: set[str]) -> None:
    _, losses = loss_of(override)
    assert absent.isdisjoint(losses.terms)
    losses.total.backward()


def test_a_weight_of_zero_leaves_its_head_out() -> None:
    model, _ = loss_of("dino.loss_weight=0")
    assert set(model.student.heads()) == {"ibot_head"}
    model, _ = loss_of("ibot.loss_weight=0")
    assert set(model.student.heads()) == {"dino_head"}


@pytest.mark.parametrize(
    ("overrides", "dino", "ibot"),
    [
        ([], "dino_head", "ibot_head"),
        (["ibot.separate_head=false"], "dino_head", "dino_head"),
        (["dino.loss_weight=0"], None, "ibot_head"),
        (["ibot.loss_weight=0"], "dino_head", None),
    ],
)
def test_each_nested_loss_reads_its_head_and_a_number_of_rows(
    overrides: list[str], dino: str | None, ibot: str | None
) -> None:
    config = tiny_config(*overrides)
    model = StudentTeacher(config)
    heads = model.student.heads()
    # 4 images with 2 global and 2 local crops; 23.75 per cent of 8 x 16 patches are masked.
    counts = [(dino, 8, 16, 2), (ibot, 24, 24, 1)]
    assert [row[1:] for row in model.scored_rows(config)] == [
        count[1:] for count in counts if count[0] is not None
    ]
    for row, name in zip(model.scored_rows(config), filter(None, (dino, ibot)), strict=True):
        assert row.head is heads[name]


def test_a_shared_head_sees_patches_too() -> None:
    model, losses = loss_of("dino.loss_weight=0", "ibot.separate_head=false")
    assert set(losses.terms) == {"ibot", "koleo"}
    losses.total.backward()
    assert model.student.head_of("dino").last_layers[0].weight_v.grad is not None


def test_packed_crops_train_like_separate_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    packed_model, packed = loss_of()
    packed.total.backward()
    together = VisionTransformer.forward_features

    def apart(self: VisionTransformer, x: Any, masks: Any, patches: Any) -> Any:
        return [together(self, *each) for each in zip(x, masks, patches, strict=True)]

    monkeypatch.setattr(VisionTransformer, "forward_features", apart)
    separate_model, separate = loss_of()
    separate.total.backward()
    assert torch.allclose(packed.total, separate.total, rtol=1e-5)
    pairs = zip(
        packed_model.student.named_parameters(), separate_model.student.parameters(), strict=True
    )
    for (name, one), other in pairs:
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(
    "overrides", [[], ["crops.local_crops_number=0"], ["ibot.loss_weight=0"]], ids=" ".join
)
def test_the_last_block_computes_only_what_the_losses_read(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    some_model, some = loss_of(*overrides)
    some.total.backward()
    some_tokens = VisionTransformer.forward_features

    def all_tokens(self: VisionTransformer, x: Any, masks: Any, patches: Any) -> Any:
        outputs = some_tokens(self, x, masks)
        for output, numbers in zip(outputs, patches, strict=True):
            every = output["x_norm_patchtokens"].flatten(0, 1)
            output["x_norm_patchtokens"] = every.index_select(0, numbers)
        return outputs

    monkeypatch.setattr(VisionTransformer, "forward_features", all_tokens)
    all_model, every = loss_of(*overrides)
    every.total.backward()
    torch.testing.assert_close(some.total, every.total, rtol=1e-6, atol=0)
    pairs = zip(some_model.student.named_parameters(), all_model.student.parameters(), strict=True)
    for (name, one), other in pairs:
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6), name


def test_the_initial_weights_have_the_spread_of_the_configuration() -> None:
    model = StudentTeacher(tiny_config("student.init_std=0.1", "student.pos_embed_init_std=0.5"))
    for network in (model.student, model.teacher):
        weights = network.backbone.blocks[0].mlp.fc1.weight, network.backbone.pos_embed
        assert [w.std().item() for w in weights] == pytest.approx([0.1, 0.5], rel=0.15)


def test_the_teacher_starts_as_the_student_and_stays_in_evaluation_mode() -> None:
    model = StudentTeacher(tiny_config()).train()
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in student)
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())


def test_student_and_teacher_share_no_storage() -> None:
    model = StudentTeacher(tiny_config())
    student = {parameter.data_ptr() for parameter in model.student.parameters()}
    assert student.isdisjoint(parameter.data_ptr() for parameter in model.teacher.parameters())


@pytest.mark.parametrize("finite", [True, False])
def test_centres_move_only_with_finite_steps(finite: bool) -> None:
    model, losses = loss_of("train.centering=centering")
    before = model.dino_loss.center.clone(), model.ibot_loss.center.clone()
    model.update_centers([losses.targets], torch.tensor(finite))
    assert torch.equal(model.dino_loss.center, before[0]) is not finite
    assert torch.equal(model.ibot_loss.center, before[1]) is not finite


def test_masked_patches_are_those_of_the_indices() -> None:
    config = tiny_config()
    model, batch = StudentTeacher(config), random_batch(config)
    targets = model(batch, 0.05).targets["ibot"]
    tokens = model.teacher.backbone.forward_features(batch.global_crops)["x_norm_patchtokens"]
    expected = model.teacher.head_of("ibot")(tokens[batch.masks])
    assert torch.allclose(targets.scores.values[-1], expected[-1], atol=1e-6)
