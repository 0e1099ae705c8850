"""A run's checkpoints as models, and what is said of a run that has no model yet."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca_fast.config.files import load_config
from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import as_encoder
from franca_fast.hub import convert, load_head, load_model, read_state_dict, save_backbone
from franca_fast.hub.checkpoint_files import Checkpoint
from franca_fast.hub.run_folder import settings_of
from franca_fast.training import pretrain
from franca_fast.training.checkpoints.writer import CheckpointWriter
from python_tests.hub.run_files import network_of, parts_of, write_run, write_sharded
from python_tests.training.tiny import TINY, tiny_config

ODD = {
    "plain": [],
    "swiglu": ["student.ffn_layer=swiglu", "student.ffn_bias=false"],
    "fused": ["student.ffn_layer=swiglufused", "student.qkv_bias=false"],
    "registers": ["student.num_register_tokens=3"],
    "positions": ["student.interpolate_offset=0.0", "student.interpolate_antialias=true"],
    "no-layerscale": ["student.layerscale=0", "student.proj_bias=false"],
    "drop-path": ["student.drop_path_rate=0.4", "student.drop_path_uniform=false"],
    "one-head": ["dino.MRL=false", "ibot.separate_head=false", "dino.normalize_bottleneck=false"],
    "full": ["dino.projection=full", "dino.head_nlayers=1", "ibot.head_nlayers=2"],
    "widths": ["dino.nesting_dims=[8,32]", "crops.global_crops_size=42"],
}


def damage(checkpoint: Path) -> None:
    file = checkpoint / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def same(first: nn.Module, second: nn.Module) -> bool:
    state, other = first.state_dict(), second.state_dict()
    return state.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in state.items())


@pytest.mark.parametrize("overrides", ODD.values(), ids=ODD.keys())
def test_a_checkpoints_teacher_is_the_model_that_its_run_exports(
    tmp_path: Path, overrides: list[str]
) -> None:
    config = tiny_config(*overrides)
    model = network_of(config)
    run = write_run(tmp_path / "run", model, config, 3)
    exported = load_model(save_backbone(model.teacher.backbone, tmp_path / "teacher"))
    loaded = load_model(run, checkpoint=3)
    assert loaded.config == exported.config
    assert same(loaded, exported)
    images = torch.randn(2, 3, 56, 28)
    with torch.no_grad():
        assert torch.equal(loaded(images), exported(images))
    assert not loaded.training


@pytest.mark.parametrize("overrides", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_a_checkpoints_heads_are_those_of_the_network(
    tmp_path: Path, network: str, overrides: list[str]
) -> None:
    config = tiny_config(*overrides)
    model = network_of(config)
    run = write_run(tmp_path, model, config, 3)
    features = torch.randn(5, config.nesting_dims[-1])
    for name, head in getattr(model, network).heads().items():
        loaded = load_head(run, name, checkpoint="newest", network=network)
        with torch.no_grad():
            for scores, expected in zip(loaded(features), head(features), strict=True):
                assert torch.equal(scores, expected)


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_sharded_checkpoints_are_put_together(tmp_path: Path, network: str) -> None:
    config = tiny_config()
    model = network_of(config)
    run = write_sharded(tmp_path, model, config)
    expected = getattr(model, network)
    assert same(load_model(run, checkpoint=1, network=network), expected.backbone)
    assert same(load_head(run, checkpoint=1, network=network), expected.dino_head)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_some_rows_are_not_taken_for_the_whole(tmp_path: Path, rank: int) -> None:
    run = write_sharded(tmp_path, network_of(tiny_config()), tiny_config())
    file = run / "checkpoints" / "1" / f"rank-{rank:05d}.safetensors"
    for read in (read_state_dict, load_head):
        with pytest.raises(InputError, match=r"some rows.*; accepted: its folder, '.*/1'"):
            read(file)


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "training.pt", "manifest.json"])
def test_a_file_of_a_checkpoint_names_the_folder_as_the_model(run: Path, file: str) -> None:
    with pytest.raises(InputError, match=r"a file of a checkpoint; accepted: its folder, '.*/20'"):
        load_model(run / "checkpoints" / "20" / file)


def test_a_run_of_the_demos_architecture_exports_what_its_checkpoint_holds(tmp_path: Path) -> None:
    short = ["train.total_steps=2", "optim.warmup_epochs=0", "train.batch_size_per_gpu=2"]
    run = pretrain("demo", tmp_path / "run", overrides=short, verbose=False).output_dir
    exported, loaded = load_model(run), load_model(run, checkpoint="newest")
    assert loaded.config == exported.config
    assert same(loaded, exported)
    assert not same(load_model(run, checkpoint=2, network="student"), exported)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config()
    folder = tmp_path_factory.mktemp("written")
    return write_run(folder, network_of(config), config, 3, 20, 100)


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "run")


def test_every_way_to_name_a_checkpoint(run: Path) -> None:
    expected = load_model(run, checkpoint=20)
    for model in (
        load_model(run / "checkpoints" / "20"),
        load_model(run / "checkpoints", checkpoint=20),
        load_model(run, checkpoint="20"),
        as_encoder(run / "checkpoints" / "20"),
        as_encoder(str(run / "checkpoints" / "20")),
    ):
        assert isinstance(model, nn.Module)
        assert same(model, expected)


def test_other_options_of_load_model_work_on_a_checkpoint(run: Path) -> None:
    model = load_model(run, None, 42, checkpoint="newest", architecture={"num_heads": 1})
    assert model.num_heads == 1
    with pytest.raises(InputError, match="multiple of the patch size 7"):
        load_model(run, img_size=30, checkpoint="newest")


def test_only_the_tensors_that_are_asked_for_are_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Checkpoint.read

    def counting(self: Checkpoint, name: str, rows: slice | None = None) -> Tensor:
        read.append(name)
        return real(self, name, rows)

    monkeypatch.setattr(Checkpoint, "read", counting)
    load_model(run, checkpoint=3, network="student")
    assert {name.split(".")[0] for name in read} == {"student"}
    assert {name.split(".")[1] for name in read} == {"backbone"}
    assert len(read) == len(set(read))
    read.clear()
    load_head(run, "ibot_head", checkpoint=3)
    assert all(name.startswith("teacher.ibot_head.") for name in read)


def test_a_model_stays_when_its_checkpoint_goes(run: Path) -> None:
    model = load_model(run, checkpoint=3)
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for file in (run / "checkpoints" / "3").glob("*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))  # in place, as a memory map would see
    assert all(torch.equal(t, expected[key]) for key, t in model.state_dict().items())


def test_a_damaged_checkpoint_is_refused_by_its_name(run: Path) -> None:
    damage(run / "checkpoints" / "20")
    for path, step in ((run, 20), (run / "checkpoints" / "20", None)):
        with pytest.raises(InputError, match=r"checkpoints/20' is damaged"):
            load_model(path, checkpoint=step)
    load_model(run, checkpoint=3)


def test_newest_is_the_newest_that_is_whole_and_says_so(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run / "checkpoints" / "100")
    with caplog.at_level(logging.WARNING):
        load_model(run, checkpoint="newest")
    assert "checkpoints/100' is damaged" in caplog.text
    assert "checkpoints/20' instead" in caplog.text


@pytest.mark.parametrize("file", ["manifest.json", "training.pt", "rank-00000.safetensors"])
def test_a_checkpoint_that_lacks_a_file_is_damaged_and_not_no_model(run: Path, file: str) -> None:
    (run / "checkpoints" / "20" / file).unlink()
    with pytest.raises(InputError, match=rf"checkpoints/20' is damaged \(lacks {file}\)"):
        load_model(run / "checkpoints" / "20")


def test_a_file_of_a_checkpoint_that_cannot_be_read_is_not_called_damaged(run: Path) -> None:
    file = run / "checkpoints" / "20" / "training.pt"
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(InputError, match=r"20' cannot be read \(Too many levels.*training\.pt"):
        load_model(run, checkpoint=20)


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("", {"checkpoint": 4}, "checkpoint: 4; accepted: newest or 3, 20, 100"),
        ("", {"checkpoint": 3.0}, "checkpoint: 3.0; accepted: newest or 3"),
        ("", {"checkpoint": "oldest"}, "checkpoint: oldest; accepted: newest or 3"),
        ("", {"checkpoint": 3, "network": "pupil"}, "network: 'pupil'.*accepted: teacher or"),
        ("", {"network": "student"}, "network: 'student'.*accepted: with a checkpoint"),
        ("checkpoints/3", {"checkpoint": 3}, "which is one; accepted: the run's folder"),
        ("config.yaml", {"checkpoint": 3}, "which is no run; accepted: with a run's folder"),
        ("nowhere", {"checkpoint": 3}, "no such file or folder; accepted: with a run's folder"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(
    run: Path, where: str, options: dict[str, Any], message: str
) -> None:
    for load in (load_model, load_head):
        with pytest.raises(InputError, match=message):
            load(run / where, **options)


@pytest.mark.parametrize("name", ["vit_base", "franca_vitb14"])
def test_a_name_has_no_checkpoints(name: str) -> None:
    with pytest.raises(InputError, match=f"checkpoint: newest, for '{name}'"):
        load_model(name, weights="random", checkpoint="newest")
    with pytest.raises(InputError, match=f"network: 'student', for '{name}'"):
        load_model(name, weights="random", network="student")


def test_a_head_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    config = tiny_config("ibot.separate_head=false")
    run = write_run(tmp_path, network_of(config), config, 3)
    with pytest.raises(InputError, match=r"start with ibot_head\. \(it holds dino_head\)"):
        load_head(run, "ibot_head", checkpoint=3)
    with pytest.raises(InputError, match="the heads of a run are in its checkpoints"):
        load_head(run)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_convert_keeps_the_heads_of_a_checkpoint(run: Path, suffix: str, network: str) -> None:
    target = run.parent / f"a{suffix}"
    options: dict[str, Any] = {"checkpoint": 20, "network": network}
    written = convert(run, target, keep_heads=True, **options)
    assert written.heads == ("dino_head", "ibot_head")
    assert same(load_model(target, architecture=written.not_stored), load_model(run, **options))
    for head in written.heads:
        assert same(load_head(target, head), load_head(run, head, **options))


def test_weights_of_a_checkpoint_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    model = network_of(config)
    model.teacher.backbone.norm.bias.data[3] = float("nan")
    run = write_run(tmp_path, model, config, 3)
    with pytest.raises(InputError, match=r"checkpoints/3:teacher': NaN .*norm\.bias \(1 of 32\)"):
        load_model(run, checkpoint=3)
    load_model(run, checkpoint=3, network="student")


def test_a_configuration_that_lacks_keys_leaves_them_to_the_shapes(tmp_path: Path) -> None:
    config = tiny_config("student.num_register_tokens=3")
    model = network_of(config)
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=1)
    writer.save(3, parts_of(model), {}, "student: {arch: vit_test}\n")
    writer.wait()
    assert same(load_model(tmp_path, checkpoint=3), model.teacher.backbone)


@pytest.mark.parametrize("text", ["", "a: [", "- a", "a: 1", "\0"])
def test_no_configuration_has_no_sections(text: str) -> None:
    assert settings_of(text) == {}


def _exported_later(run: Path) -> None:
    (run / "exported").mkdir()


def _killed_in_its_export(run: Path) -> None:
    (run / "exported").mkdir()
    (run / "exported" / "teacher.safetensors").touch()
    (run / "exported" / ".teacher-x.json").touch()


@pytest.mark.parametrize("also", [lambda run: None, _exported_later, _killed_in_its_export])
@pytest.mark.parametrize("load", [load_model, lambda path: convert(path, path / "a.pth")])
def test_a_run_without_an_export_says_how_far_it_is(
    run: Path, load: Callable[[Path], Any], also: Callable[[Path], None]
) -> None:
    also(run)
    (run / "metrics.jsonl").write_text('{"step": 107}\n{"step": 108, "los')
    command = f"franca-fast pretrain --config-file {run}/config.yaml --output-dir {run}"
    with pytest.raises(InputError) as caught:
        load(run)
    message = str(caught.value)
    assert "a run at step 107 of 8, without an exported model yet" in message
    assert "resume it, or use --checkpoint newest or one of 3, 20, 100" in message
    assert message.endswith(f"{command} resumes it")


def test_the_command_that_is_named_resumes_the_run(tmp_path: Path) -> None:
    few = ["train.total_steps=2", "train.checkpoint_every=1"]
    run = pretrain(TINY, tmp_path / "run", overrides=few, verbose=False).output_dir
    shutil.rmtree(run / "exported")
    shutil.rmtree(run / "checkpoints" / "2")
    with pytest.raises(InputError, match="at step 2 of 2, without an exported model yet"):
        load_model(run)
    assert pretrain(run / "config.yaml", run, verbose=False).exported is not None
    load_model(run)


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path, network_of(tiny_config()), tiny_config())
    (run / "metrics.jsonl").write_text(json.dumps({"step": 2}) + "\n")
    with pytest.raises(InputError, match="at step 2 of 8, without a checkpoint or an exported"):
        load_model(run)
    with pytest.raises(InputError, match=r"checkpoint: newest; .* has none yet"):
        load_model(run, checkpoint="newest")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no exported models, which holds nothing"),
        (["a.png", "b.pth"], r"no exported models, which holds a\.png, b\.pth"),
        (["3/manifest.json"], r"a folder of checkpoints; accepted: one of them, such as '.*/3'"),
    ],
)
def test_a_folder_that_is_no_run_says_what_it_holds(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_a_folder_that_cannot_be_listed_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match="permission denied"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xb2\xe2", b"\x83e\x83X"])
def test_folders_need_not_be_utf_8(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    pretrain(TINY, folder, overrides=["train.total_steps=2"], verbose=False)
    assert same(load_model(folder, checkpoint=2), load_model(folder))
    # It is resumed and not begun anew: there is nothing left to do.
    pretrain(load_config(folder / "config.yaml"), folder, verbose=False)
    assert f"resuming from checkpoint '{tmp_path}/" in (folder / "train.log").read_text()
