"""Starting from the weights of another run: every key must match."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.hub import save_backbone
from franca_fast.training.checkpoints.state import checkpoint_tensors
from franca_fast.training.distributed.parallelize import Layout
from franca_fast.training.distributed.world import World
from franca_fast.training.initial_weights import load_initial_weights
from franca_fast.training.optimizer import LocalOptimizer
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.training.tiny import save_checkpoint, tiny_config


def another_model(*overrides: str) -> StudentTeacher:
    torch.manual_seed(123)
    model = StudentTeacher(tiny_config(*overrides))
    for parameter in model.teacher.parameters():
        parameter.data.add_(0.01)
    return model


def write_run(model: StudentTeacher, folder: Path) -> Path:
    optimizer = LocalOptimizer(model.student, tiny_config().optim)
    tensors = checkpoint_tensors(model, optimizer, Layout(World()))
    return save_checkpoint(folder / "checkpoints", 5, tensors)


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def test_nothing_asked_for_loads_nothing() -> None:
    config = tiny_config()
    assert load_initial_weights(StudentTeacher(config), config) is None


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_backbone_weights_reach_student_and_teacher(tmp_path: Path, kind: str) -> None:
    source = another_model().teacher.backbone
    path = tmp_path / f"teacher.{kind}"
    if kind == "pth":
        prefixed = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items()}
        torch.save({"teacher": prefixed}, path)
    else:
        save_backbone(source, tmp_path / "teacher")
    config = tiny_config(f"student.pretrained_weights={path}")
    model = StudentTeacher(config)
    assert str(path) in (load_initial_weights(model, config) or "")
    assert equal(model.student.backbone.state_dict(), source.state_dict())
    assert equal(model.teacher.backbone.state_dict(), source.state_dict())


def test_loaded_student_and_teacher_share_no_storage(tmp_path: Path) -> None:
    save_backbone(another_model().teacher.backbone, tmp_path / "teacher")
    config = tiny_config(f"student.pretrained_weights={tmp_path / 'teacher.safetensors'}")
    model = StudentTeacher(config)
    load_initial_weights(model, config)
    assert model.student.backbone.norm.weight.data_ptr() != (
        model.teacher.backbone.norm.weight.data_ptr()
    )
    assert model.student.backbone.norm.weight.requires_grad
    assert not model.teacher.backbone.norm.weight.requires_grad


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/5"])
def test_a_whole_run_brings_its_heads(tmp_path: Path, part: str) -> None:
    source = another_model()
    write_run(source, tmp_path)
    config = tiny_config(f"MODEL.WEIGHTS={tmp_path / part}")
    model = StudentTeacher(config)
    load_initial_weights(model, config)
    assert equal(model.student.state_dict(), source.student.state_dict())
    assert equal(model.teacher.state_dict(), source.teacher.state_dict())


def test_positions_are_resampled_to_another_size(tmp_path: Path) -> None:
    source = another_model()
    write_run(source, tmp_path)
    config = tiny_config(f"MODEL.WEIGHTS={tmp_path}", "crops.global_crops_size=56")
    model = StudentTeacher(config)
    load_initial_weights(model, config)
    images = torch.randn(1, 3, 56, 56)
    assert model.teacher.backbone.pos_embed.shape == (1, 65, 32)
    assert torch.allclose(
        model.teacher.backbone(images), source.teacher.backbone(images), atol=1e-5
    )


def whole_file(model: StudentTeacher, path: Path) -> Path:
    """A file as the released training writes it: the teacher with its heads."""
    torch.save({"teacher": {f"module.{k}": t for k, t in model.teacher.state_dict().items()}}, path)
    return path


def test_a_file_with_heads_brings_them_to_student_and_teacher(tmp_path: Path) -> None:
    source = another_model()
    config = tiny_config(f"MODEL.WEIGHTS={whole_file(source, tmp_path / 'teacher.pth')}")
    model = StudentTeacher(config)
    assert "backbone and heads" in (load_initial_weights(model, config) or "")
    assert equal(model.student.state_dict(), source.teacher.state_dict())
    assert equal(model.teacher.state_dict(), source.teacher.state_dict())


@pytest.mark.parametrize("name", ["teacher.safetensors", "teacher.json", "teacher", "", "run"])
def test_an_exported_model_is_found_and_its_heads_are_random(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "exported"
    source = another_model().teacher.backbone
    save_backbone(source, folder / "teacher")
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path if name in ("", "run") else folder / name
    config = tiny_config(f"MODEL.WEIGHTS={path}")
    model = StudentTeacher(config)
    heads = {k: t.clone() for k, t in model.student.head_of("dino").state_dict().items()}
    with caplog.at_level("WARNING"):
        load_initial_weights(model, config)
    assert "holds no heads" in caplog.text
    assert equal(model.teacher.backbone.state_dict(), source.state_dict())
    assert equal(model.student.head_of("dino").state_dict(), heads)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.ffn_layer=swiglu"], "student.ffn_layer is mlp, the weights have swiglufused"),
        (["student.num_register_tokens=2"], "student.num_register_tokens is 0, the weights have 2"),
        (["student.patch_size=14"], "student.patch_size is 7, the weights have 14"),
        (["student.qkv_bias=false"], "student.qkv_bias is True, the weights have False"),
        (
            ["student.arch=vit_nano"],
            "student.arch is vit_test (width 32, depth 2), the weights are of vit_nano (width 128, "
            "depth 4)",
        ),
        (["dino.nesting_dims=[8,32]"], "dino.nesting_dims is [2, 4, 8, 16, 32], the weights have"),
        (["dino.head_n_prototypes=128"], "dino.head_n_prototypes is 64, the weights have 128"),
        (["ibot.head_hidden_dim=64"], "ibot.head_hidden_dim is 32, the weights have 64"),
        (["ibot.head_nlayers=2"], "ibot.head_nlayers is 3, the weights have 2"),
        (["dino.head_bottleneck_dim=8"], "dino.head_bottleneck_dim is 16, the weights have 8"),
        (["dino.projection=full"], "dino.projection is slice, the weights have full"),
        (["ibot.separate_head=false"], "hold dino_head; accepted: dino_head and ibot_head, which"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_keys_that_differ(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    path = whole_file(another_model(*overrides), tmp_path / "teacher.pth")
    config = tiny_config(f"MODEL.WEIGHTS={path}")
    with pytest.raises(InputError) as caught:
        load_initial_weights(StudentTeacher(config), config)
    assert message in str(caught.value)
    assert "teacher.pth" in str(caught.value)


def test_a_head_of_one_layer_fits_whatever_its_hidden_width(tmp_path: Path) -> None:
    source = another_model("ibot.head_nlayers=1")
    path = whole_file(source, tmp_path / "teacher.pth")
    config = tiny_config(f"MODEL.WEIGHTS={path}", "ibot.head_nlayers=1", "ibot.head_hidden_dim=48")
    model = StudentTeacher(config)
    load_initial_weights(model, config)
    taken = source.teacher.head_of("ibot").state_dict()
    assert equal(model.student.head_of("ibot").state_dict(), taken)


def test_a_head_too_many_is_refused(tmp_path: Path) -> None:
    path = whole_file(another_model(), tmp_path / "teacher.pth")
    config = tiny_config(f"MODEL.WEIGHTS={path}", "ibot.separate_head=false")
    with pytest.raises(InputError, match="hold dino_head and ibot_head; accepted: dino_head"):
        load_initial_weights(StudentTeacher(config), config)


def test_a_checkpoint_of_other_heads_is_refused(tmp_path: Path) -> None:
    write_run(another_model("dino.nesting_dims=[8,32]"), tmp_path)
    config = tiny_config(f"MODEL.WEIGHTS={tmp_path}")
    with pytest.raises(InputError, match=r"checkpoints/5:student.*dino\.nesting_dims"):
        load_initial_weights(StudentTeacher(config), config)


def test_high_resolution_fine_tuning_needs_weights() -> None:
    config = tiny_config("train.high_resolution_finetune=true")
    with pytest.raises(InputError, match="no weights to fine-tune"):
        load_initial_weights(StudentTeacher(config), config)


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "student.pretrained_weights"])
def test_a_missing_file_is_an_input_error(tmp_path: Path, key: str) -> None:
    config = tiny_config(f"{key}={tmp_path / 'absent.pth'}")
    with pytest.raises(InputError, match=r"absent\.pth"):
        load_initial_weights(StudentTeacher(config), config)


def test_environment_variables_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(another_model(), tmp_path)
    monkeypatch.setenv("RUNS", str(tmp_path))
    config = tiny_config("MODEL.WEIGHTS=$RUNS")
    assert str(tmp_path) in (load_initial_weights(StudentTeacher(config), config) or "")
