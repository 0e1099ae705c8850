"""A network and a run small enough for tests, and a way to run it in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from franca_fast.config.files import load_config
from franca_fast.config.schema import Config
from franca_fast.data import Batch
from franca_fast.hub.checkpoint_files import Part
from franca_fast.models import ARCHITECTURES
from franca_fast.training.checkpoints.writer import CheckpointWriter

ROOT = Path(__file__).parent.parent.parent

ARCHITECTURES.setdefault("vit_test", {"embed_dim": 32, "depth": 2, "num_heads": 2})

TINY: dict[str, Any] = {
    "dino": {
        "head_n_prototypes": 64,
        "head_bottleneck_dim": 16,
        "head_hidden_dim": 32,
        # So narrow a head gives scores near 0 without it.
        "normalize_bottleneck": True,
    },
    "ibot": {
        "separate_head": True,
        "head_n_prototypes": 64,
        "head_bottleneck_dim": 16,
        "head_hidden_dim": 32,
    },
    "train": {
        "batch_size_per_gpu": 4,
        "dataset_path": "FashionMNIST:split=TEST",
        "centering": "sinkhorn_knopp",
        "OFFICIAL_EPOCH_LENGTH": 2,
        "num_workers": 0,
        "tensorboard": False,
        "checkpoint_every": 3,
    },
    "student": {"arch": "vit_test", "patch_size": 7, "drop_path_rate": 0.3, "layerscale": 0.1},
    "optim": {"epochs": 4, "warmup_epochs": 1, "layerwise_decay": 1.0},
    "crops": {"global_crops_size": 28, "local_crops_size": 14, "local_crops_number": 2},
    "compute_precision": {"autocast": "fp32"},
}

LOSSES = ("loss", "dino_global_heads", "dino_local_heads", "ibot_heads", "koleo")


def tiny_config(*overrides: str) -> Config:
    return load_config(TINY, overrides)


def random_batch(config: Config, n_images: int = 4, seed: int = 0) -> Batch:
    """A batch of noise with the masks of two of its crops."""
    generator = torch.Generator().manual_seed(seed)
    crops, side = config.crops, config.crops.global_crops_size // config.student.patch_size
    masks = torch.zeros(2 * n_images, side * side, dtype=torch.bool)
    masks[0, ::2] = True
    masks[-1, ::3] = True
    counts = masks.sum(1, dtype=torch.float32)
    n_local = crops.local_crops_number * n_images
    size = crops.local_crops_size
    return Batch(
        global_crops=torch.randn(
            2 * n_images, 3, crops.global_crops_size, crops.global_crops_size, generator=generator
        ),
        local_crops=torch.randn(n_local, 3, size, size, generator=generator) if n_local else None,
        masks=masks,
        mask_indices=masks.flatten().nonzero().flatten(),
        mask_weights=(1 / counts)[:, None].expand_as(masks)[masks],
        keys=[str(i) for i in range(n_images)],
    )


def losses_of(output_dir: Path) -> dict[int, list[Any]]:
    """The losses in metrics.jsonl by step; fails when a step appears twice."""
    found: dict[int, list[Any]] = {}
    for text in (output_dir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        assert line["step"] not in found
        found[line["step"]] = [line[name] for name in LOSSES]
    return found


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Part],
    training: Mapping[str, Any] | None = None,
    *,
    config: str = "",
    keep: int = 1,
) -> Path:
    """Writes `folder/<step>/` from one process, and waits for it."""
    writer = CheckpointWriter(folder, keep=keep)
    writer.save(step, tensors, training or {}, config)
    writer.wait()
    return folder / str(step)


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Runs Python code with this module's names, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", f"from python_tests.training.tiny import *\n{code}", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equality of nested containers with tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    else:
        assert one == other, where
