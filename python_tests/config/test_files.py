"""Loading, overriding, comparing and writing configurations."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from franca_fast.config.files import (
    RECIPES,
    differing_keys,
    flatten,
    list_recipes,
    load_config,
    to_yaml,
)
from franca_fast.config.schema import Config
from franca_fast.errors import InputError

# The July 2025 release's fine-tuning file for ViT-B, every key that it sets.
RELEASED = """
dino:
  head_n_prototypes: 131072
  head_bottleneck_dim: 384
  MRL: True
ibot:
  separate_head: true
  head_n_prototypes: 131072
train:
  batch_size_per_gpu: 32
  dataset_path: ImageNet:split=TRAIN:root=/data/imagenet/:extra=/data/extra
  centering: sinkhorn_knopp
  use_block_masking: True
  use_inverse_block: True
  roll: True
  high_resolution_finetune: False
  OFFICIAL_EPOCH_LENGTH: 200
  saveckp_freq: 1
student:
  arch: vit_base
  patch_size: 14
  drop_path_rate: 0.1
  ffn_layer: swiglufused
  block_chunks: 4
  pretrained_weights: '/data/teacher_checkpoint.pth'
teacher:
  momentum_teacher: 0.994
  warmup_teacher_temp_epochs: 30
optim:
  epochs: 100
  weight_decay_end: 0.2
  base_lr: 7.05e-5  # learning rate for a batch size of 1024
  warmup_epochs: 50
  layerwise_decay: 1.0
crops:
  local_crops_size: 98
  global_crops_size: 518
"""

# The released defaults that franca.md does not repeat, in the released spelling.
RELEASED_DEFAULTS = """
MODEL:
  WEIGHTS: ''
compute_precision:
  grad_scaler: true
  student:
    dino_head:
      sharding_strategy: SHARD_GRAD_OP
      mixed_precision:
        param_dtype: fp16
        reduce_dtype: fp32
        buffer_dtype: fp32
optim:
  lr: 0.  # will be set after applying scaling rule
  scaling_rule: sqrt_wrt_1024
teacher:
  final_momentum_teacher: 1
evaluation:
  eval_period_iterations: 12500
"""


@pytest.mark.parametrize("text", [RELEASED, RELEASED_DEFAULTS])
def test_released_files_load_unchanged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "released.yaml"
    path.write_text(text)
    assert isinstance(load_config(path), Config)


def test_values_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "released.yaml"
    path.write_text(RELEASED)
    config = load_config(path)
    assert (config.optim.base_lr, config.crops.global_crops_size) == (7.05e-5, 518)
    assert config.dino.head_hidden_dim == 2048


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path) -> None:
    path = tmp_path / "released.yaml"
    path.write_text(RELEASED)
    config = load_config(path, ["train.seed=3", "train.seed=4", "dino.nesting_dims=[192,768]"])
    assert (config.train.seed, config.dino.nesting_dims) == (4, [192, 768])


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_loads(name: str) -> None:
    assert load_config(name).train.centering == "sinkhorn_knopp"


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_says_how_its_learning_rate_follows_the_batch_size(name: str) -> None:
    comments = [
        line
        for line in (RECIPES / f"{name}.yaml").read_text().splitlines()
        if line.startswith("#") and "learning rate" in line
    ]
    rule = "as it is" if load_config(name).optim.lr else "base_lr * sqrt(global batch / 1024)"
    assert any(rule in line for line in comments)


def test_high_resolution_stages_have_the_papers_sizes_and_lengths() -> None:
    for size in "bl":
        first, second = (load_config(f"vit{size}14_{pixels}px") for pixels in (364, 518))
        assert (first.crops.global_crops_size, first.crops.local_crops_size) == (364, 112)
        assert (second.crops.global_crops_size, second.crops.local_crops_size) == (518, 168)
        assert (first.total_steps, second.total_steps) == (30_000, 10_000)
        differing = {key.split(" ")[0] for key in differing_keys(first, second)}
        assert differing == {
            "crops.global_crops_size",
            "crops.local_crops_size",
            "optim.epochs",
            "optim.warmup_epochs",
        }


@pytest.mark.parametrize(
    ("name", "batch", "drop_path", "steps", "base_lr", "warmup"),
    [
        ("vitb14_in21k", 32, 0.1, 1_000_000, 7.01e-4, 128),
        ("vitl14_in21k", 32, 0.4, 20_000, 2e-4, 8),
        ("vitl14_laion", 32, 0.4, 625_000, 1e-3, 80),
        ("vitg14_laion", 32, 0.4, 625_000, 2e-4, 80),
        ("vitb14_highres", 32, 0.1, 20_000, 7.05e-5, 50),
        ("vitl14_highres", 16, 0.1, 20_000, 1.51e-5, 50),
    ],
)
def test_released_recipes_have_the_released_values(
    name: str, batch: int, drop_path: float, steps: int, base_lr: float, warmup: int
) -> None:
    config = load_config(name)
    found = (
        config.train.batch_size_per_gpu,
        config.student.drop_path_rate,
        config.total_steps,
        config.optim.base_lr,
        config.optim.warmup_epochs,
    )
    assert found == (batch, drop_path, steps, base_lr, warmup)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dino.mrl=true", "unknown configuration key 'dino.mrl' (did you mean 'dino.MRL'"),
        ("optim.base_learning_rate=1", "'optim.base_learning_rate' (did you mean 'optim."),
        ("train.epochs=3", "'train.epochs' (did you mean 'optim.epochs'"),
        ("optimiser.epochs=3", "key 'optimiser' (did you mean 'optim'"),
        ("train.batch_size_per_gpu=many", "train.batch_size_per_gpu: Value 'many'"),
        ("train.batch_size_per_gpu=2.5", "could not be converted to Integer"),
        ("dino.MRL=maybe", "dino.MRL: Value 'maybe' is not a valid bool"),
        ("dino=3", "override 'dino=3'"),
        ("optim.clip_grad=null", "optim.clip_grad"),
        ("crops.global_crops_scale=0.3", "crops.global_crops_scale"),
        ("train.seed", "accepted: section.key=value"),
        ("train.seed=[1", "accepted: a value in YAML"),
    ],
)
def test_a_wrong_override_is_an_input_error_that_names_it(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dino: [", "cannot be read"),
        ("- 1\n- 2\n", "accepted: a YAML mapping"),
        ("train:\n  sed: 1\n", "'train.sed' (did you mean 'train.seed'"),
        ("train:\n  seed: 1\n  seed: 2\n", "duplicate key"),
    ],
)
def test_a_wrong_file_is_an_input_error_that_names_it(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{00..99}.tar", "*.tar", "x: y", "- a", "%x", "@a"])
def test_text_that_is_no_yaml_is_refused_with_its_key_and_with_quotes(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"train:\n  seed: 1\n  dataset_path: {text}\n")
    with pytest.raises(InputError, match=r"train\.dataset_path is text, and in quotes YAML takes"):
        load_config(path)
    path.write_text(f"train:\n  seed: 1\n  dataset_path: '{text}'\n")
    assert load_config(path).train.dataset_path == text


@pytest.mark.parametrize("override", ["train={wandb: 0123}", "train[wandb]=yes"])
def test_text_within_a_value_of_yaml_is_not_reread(override: str) -> None:
    with pytest.raises(InputError, match=r"train\.wandb: .*; accepted: text"):
        load_config(None, [override])


@pytest.mark.parametrize("text", ["${oc.env:HOME}/x", "${train.output_dir}/x"])
def test_a_file_is_told_that_text_is_not_interpolated(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"train: {{dataset_path: '{text}', wandb: '${{VAR}}'}}\n")
    assert load_config(path).train.dataset_path == text
    assert [record.args for record in caplog.records] == [("train.dataset_path", text)]


def test_numbers_may_name_each_other(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("optim: {lr: '${optim.base_lr}', base_lr: 0.5}\n")
    assert load_config(path, ["optim.min_lr=${optim.lr}"]).optim.min_lr == 0.5


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        (lambda path: path.symlink_to("nothing"), "a link to what is missing"),
        (lambda path: path.mkdir(), "a folder"),
        (os.mkfifo, "a pipe, no file"),
    ],
)
def test_a_file_that_is_there_is_not_called_missing(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / "config.yaml")
    with pytest.raises(InputError, match=f"config.yaml': {reason}"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["loop/config.yaml", "x" * 300])
def test_a_file_that_cannot_be_looked_for_is_not_called_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"': (too many levels|file name too long)"):
        load_config(tmp_path / name)


@pytest.mark.parametrize("key", ["train.seed", "train.dataset_path", "compute_precision.autocast"])
def test_dotted_keys_are_no_sections(tmp_path: Path, key: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{key}: '1'\n")
    for source in (path, {key: "1"}):
        with pytest.raises(InputError, match=f"'{key}'; accepted: sections in one another"):
            load_config(source)


def test_a_missing_file_names_the_nearest_recipe() -> None:
    with pytest.raises(InputError, match="did you mean 'vitb14_in21k'"):
        load_config("vitb14_in22k")


def test_a_mapping_is_accepted() -> None:
    given: dict[str, Any] = {"train": {"seed": 7}}
    assert load_config(given).train.seed == 7


def test_a_config_is_copied() -> None:
    given = Config()
    load_config(given, ["train.seed=9"])
    assert given.train.seed == 0


def test_yaml_holds_every_key_and_reads_back(tmp_path: Path) -> None:
    config = load_config(None, ["train.seed=5", "dino.nesting_dims=[64,1024]"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_flatten_names_nested_keys() -> None:
    key = "compute_precision.student.dino_head.mixed_precision.reduce_dtype"
    assert flatten(Config())[key] == "fp32"


def test_differing_keys_leave_out_those_that_only_report() -> None:
    old = load_config(None)
    new = load_config(None, ["train.seed=1", "train.log_every=3", "train.output_dir=elsewhere"])
    assert differing_keys(old, new) == ["train.seed (0 -> 1)"]
