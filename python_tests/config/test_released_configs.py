"""Configurations with the released files' keys resolve to what the released code computes.

The golden figures were computed by the released code from its own files; the files below are ours
and set the same keys to the same values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from franca_fast.config.files import flatten, load_config
from franca_fast.config.schema import Config
from franca_fast.models import ARCHITECTURES
from franca_fast.training.optimizer import parameter_groups
from franca_fast.training.schedules import Schedules
from franca_fast.training.student_teacher import Network

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "released_configs.json").read_text(encoding="utf-8")
)
GPUS, FIGURES = GOLDEN["gpus"], GOLDEN["configs"]

# architecture, batch, drop path, epochs, base_lr, warm-up epochs, dataset string
ROWS: dict[str, tuple[Any, ...]] = {
    "train/IN21K/vitb14": ("vit_base", 32, 0.1, 800, "7.01e-4", 128, "ImageNet22k"),
    "train/IN21K/vitl14": ("vit_large", 32, 0.4, 16, "2.0e-04", 8, "ImageNet22k"),
    "train/IN21K/vitg14": ("vit_giant2", 32, 0.4, 500, "2.0e-04", 80, "ImageNet22k"),
    "train/LAION/vitl14": ("vit_large", 32, 0.4, 500, "1.0e-03", 80, "LAION"),
    "train/LAION/vitg14": ("vit_giant2", 32, 0.4, 500, "2.0e-04", 80, "LAION"),
    "finetune/vitb14_finetune": ("vit_base", 32, 0.1, 100, "7.05e-5", 50, "ImageNet"),
    "finetune/vitl14_finetune": ("vit_large", 16, 0.1, 100, "1.51e-5", 50, "ImageNet"),
}
RECIPE_OF = {
    "train/IN21K/vitb14": "vitb14_in21k",
    "train/IN21K/vitl14": "vitl14_in21k",
    "train/IN21K/vitg14": "vitg14_in21k",
    "train/LAION/vitl14": "vitl14_laion",
    "train/LAION/vitg14": "vitg14_laion",
    "finetune/vitb14_finetune": "vitb14_highres",
    "finetune/vitl14_finetune": "vitl14_highres",
}
# Root is given twice in the released strings for ImageNet-21K; the last one holds.
DATASETS = {
    "ImageNet22k": "ImageNet22k:root=TRAIN:root=/data/in21k/:extra=/data/extra/",
    "ImageNet": "ImageNet:split=TRAIN:root=/data/imagenet/:extra=/data/extra",
    "LAION": "LAION:root=$DATA/laion",
}
# What the July 2025 release builds and `dino.projection` switches to; ours slices by default.
RELEASED_FORM = ["dino.projection=full"]


def released_yaml(name: str) -> str:
    """A file with the keys of the released one, in its spelling of the values."""
    arch, batch, drop_path, epochs, base_lr, warmup, dataset = ROWS[name]
    text = f"""
ibot: {{separate_head: true, head_n_prototypes: 131072}}
train:
  centering: sinkhorn_knopp
  batch_size_per_gpu: {batch}
  dataset_path: {DATASETS[dataset]}
  high_resolution_finetune: False
  use_block_masking: True
  use_inverse_block: True
  roll: True
  {"OFFICIAL_EPOCH_LENGTH: 200" if "finetune" in name else ""}
  {"saveckp_freq: 1" if "finetune" in name else ""}
student:
  {"pretrained_weights: '/data/teacher_checkpoint.pth'" if "finetune" in name else ""}
  arch: {arch}
  block_chunks: 4
  ffn_layer: swiglufused
  drop_path_rate: {drop_path}
  patch_size: 14
teacher:
  momentum_teacher: 0.994
  {"warmup_teacher_temp_epochs: 30" if "finetune" in name else ""}
optim:
  layerwise_decay: 1.0
  warmup_epochs: {warmup}
  base_lr: {base_lr}  # for 1024 images
  weight_decay_end: 0.2
  epochs: {epochs}
crops:
  local_crops_size: 98
"""
    if "finetune" in name:
        text += "  global_crops_size: 518\n"
    if name == "train/LAION/vitl14":
        text += "  global_crops_scale: [0.48, 1.0]\n"
    if name == "train/LAION/vitg14":
        text += "  global_crops_scale:\n  - 0.45\n  - 1.0\n  local_crops_scale: [0.05, 0.45]\n"
    # The one released file without this key is that of ViT-g on ImageNet-21K.
    nested = "" if name == "train/IN21K/vitg14" else ", MRL: True"
    return f"dino: {{head_n_prototypes: 131072, head_bottleneck_dim: 384{nested}}}\n{text}"


@pytest.fixture(params=list(ROWS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(name: str, tmp_path: Path) -> Config:
    path = tmp_path / "released.yaml"
    path.write_text(released_yaml(name))
    return load_config(path, RELEASED_FORM)


def test_every_released_configuration_has_a_golden_value() -> None:
    assert ROWS.keys() == FIGURES.keys() == RECIPE_OF.keys()


def test_the_model_and_its_parameter_groups_are_the_released_ones(
    name: str, config: Config
) -> None:
    expected = FIGURES[name]
    with torch.device("meta"):
        student = Network(config, drop_path_rate=config.student.drop_path_rate)
    found: dict[str, list[list[Any]]] = {}
    for group in parameter_groups(student, config.optim):
        (module,) = {name.split(".")[0] for name in group["names"]}
        rule = [group[key] for key in ("lr_multiplier", "wd_multiplier", "is_last_layer")]
        elements = sum(parameter.numel() for parameter in group["params"])
        found.setdefault(module, []).append([*rule, len(group["params"]), elements])
    assert {module: sorted(groups) for module, groups in found.items()} == expected["groups"]
    assert list(student.backbone.pos_embed.shape) == expected["pos_embed"]
    assert student.backbone.num_heads == expected["heads"]
    rates = [student.backbone.blocks[i].drop_path for i in (0, -1)]
    assert rates == expected["drop_path"]
    assert list(student.head_of("dino").out_dims) == expected["prototypes"]


def test_the_schedules_are_the_released_ones(name: str, config: Config) -> None:
    expected = FIGURES[name]
    assert config.total_steps == expected["steps"]
    schedules = Schedules(config, global_batch_size=GPUS * config.train.batch_size_per_gpu)
    for step, *values in expected["schedules"]:
        assert list(vars(schedules.at(step)).values()) == pytest.approx(values, rel=1e-9, abs=1e-15)


def test_our_recipe_is_the_released_configuration(name: str, config: Config) -> None:
    recipe = load_config(RECIPE_OF[name])
    differing = {
        key: (value, flatten(recipe)[key])
        for key, value in flatten(config).items()
        if flatten(recipe)[key] != value
    }
    own = {"dino.projection", "train.dataset_path", "student.pretrained_weights"}
    # The released code starts a fine-tuning from pretrained_weights alone.
    assert differing.keys() <= own | {"train.high_resolution_finetune"}


def test_the_architectures_are_the_released_sizes() -> None:
    sizes = {
        arch: tuple(ARCHITECTURES[arch].values())
        for arch in ("vit_small", "vit_base", "vit_large", "vit_giant2")
    }
    assert sizes == {
        "vit_small": (384, 12, 6),
        "vit_base": (768, 12, 12),
        "vit_large": (1024, 24, 16),
        "vit_giant2": (1536, 40, 24),
    }
