"""Trains a ViT-S/14 in a peer's own training loop, or in ours: the child process of peers.py.

    python -m bench.peer_child ours|birder|lightly-train fp32|bf16 [section.key=value ...]

Nothing is imitated: Birder's training script and Lightning with lightly-train's method run as they
are, and only get their batches, and lightly-train its masks, from here. A step lasts from one batch
to the next, so it has everything that the loop does. All of them see the same random crops and
masks, and have the same widths, prototypes, LayerScale, and separate processes. Last layers are not
frozen in any, and Birder may use PyTorch's fused AdamW, which it does not by default.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch

import franca_fast
from bench.gpu.steps import random_batch
from bench.step_child import CASES
from bench.turns import Turns
from franca_fast.config import Config, load_config
from franca_fast.data import Batch

N_STEPS = 1000  # never reached: the schedules' length
SETTINGS = [
    *(setting for setting in CASES["vits14"][1] if not setting.startswith("train.total_steps=")),
    f"train.total_steps={N_STEPS}",
    "train.device=cpu",
    "optim.freeze_last_layer_epochs=0",
]


class Loader:
    """What a peer takes for its data loader: one batch, whenever it is a turn."""

    def __init__(self, turns: Turns, batch: Any, **about: Any) -> None:
        self._turns, self._batch, self._about = turns, batch, about
        self.dataset = range(N_STEPS)  # lightly-train asks for its length

    def __len__(self) -> int:
        return N_STEPS

    def __iter__(self) -> Iterator[Any]:
        return self._turns.batches(self._batch, **self._about)


def ours(turns: Turns, config: Config, batch: Batch, precision: str) -> None:
    """The step of this package."""
    from franca_fast.training.run import Run

    run = Run(config)
    run.start()
    for _ in turns.batches(batch, version=franca_fast.__version__):
        run.train_on([batch], diagnose=False)


def birder(turns: Turns, config: Config, batch: Batch, precision: str) -> None:
    """The training script of Birder's Franca."""
    from birder.scripts import train_franca

    dino, crops = config.dino, config.crops
    args = train_franca.args_from_dict(
        network=f"vit_s{config.student.patch_size}",
        model_config={"layer_scale_init_value": config.student.layerscale},
        size=[crops.global_crops_size],
        local_crop_size=[crops.local_crops_size],
        local_crops_number=crops.local_crops_number,
        batch_size=config.train.batch_size_per_gpu,
        dino_out_dim=dino.head_n_prototypes,
        ibot_out_dim=config.ibot.head_n_prototypes,
        ibot_separate_head=config.ibot.separate_head,
        freeze_last_layer_epochs=0,
        opt="adamw",
        opt_fused=True,
        lr=config.optim.lr or 1e-4,
        wd=config.optim.weight_decay,
        wd_end=config.optim.weight_decay_end,
        norm_wd=0.0,
        clip_grad_norm=config.optim.clip_grad,
        amp=precision == "bf16",
        amp_dtype="bfloat16",
        epochs=2,
        warmup_teacher_temp_epochs=0,
        steps_per_epoch=N_STEPS,
        num_workers=0,
        device="cpu",
        use_fake_data=True,
        no_summary=True,
        non_interactive=True,
    )
    data = {
        "collated_global_crops": batch.global_crops,
        "collated_local_crops": batch.local_crops,
        "collated_masks": batch.masks,
        "mask_indices_list": batch.mask_indices,
        "masks_weight": batch.mask_weights,
        "upper_bound": upper_bound(config, batch),
    }
    loader = Loader(turns, data, version=version("birder"))
    os.mkdir("models")
    with patch.object(train_franca, "DataLoader", lambda *_, **__: loader):
        train_franca.train(args)


def upper_bound(config: Config, batch: Batch) -> int:
    """The rows to which Birder's collator pads the masked patches, for our ratios of them."""
    n_crops, n_patches = batch.masks.shape
    ratios = torch.linspace(
        *config.ibot.mask_ratio_min_max, int(n_crops * config.ibot.mask_sample_probability) + 1
    )
    return sum(int(n_patches * most) for _, most in pairwise(ratios.tolist()))


def lightly_train(turns: Turns, config: Config, batch: Batch, precision: str) -> None:
    """The DINOv2 of lightly-train under Lightning, with Sinkhorn-Knopp."""
    from lightly_train._methods.dinov2 import dinov2
    from lightly_train._models.dinov2_vit.dinov2_vit_package import DINOV2_VIT_PACKAGE
    from lightly_train._models.embedding_model import EmbeddingModel
    from pytorch_lightning import Trainer

    network = DINOV2_VIT_PACKAGE.get_model(
        f"vits{config.student.patch_size}-noreg",
        model_args={
            "img_size": config.crops.global_crops_size,
            "init_values": config.student.layerscale,
            "drop_path_rate": 0.0,
        },
        load_weights=False,
    )
    method = dinov2.DINOv2(
        dinov2.DINOv2Args(
            output_dim=config.dino.head_n_prototypes,
            ibot_separate_head=config.ibot.separate_head,
            center_method="sinkhorn_knopp",
            student_freeze_last_layer_steps=0,
            weight_decay_start=config.optim.weight_decay,
            warmup_steps=0,
        ),
        dinov2.DINOv2AdamWViTArgs(),
        EmbeddingModel(DINOV2_VIT_PACKAGE.get_model_wrapper(network)),
        global_batch_size=config.train.batch_size_per_gpu,
        num_input_channels=3,
    )
    masks = {
        "collated_masks": batch.masks,
        "mask_indices_list": batch.mask_indices,
        "masks_weight": batch.mask_weights,
    }
    assert batch.local_crops is not None
    crops = [
        *batch.global_crops.chunk(2),
        *batch.local_crops.chunk(config.crops.local_crops_number),
    ]
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = Loader(turns, {"views": crops}, version=version("lightly-train"))
    with patch.object(dinov2, "create_collated_masks", lambda **_: masks):
        trainer.fit(method, loader)


LOOPS: dict[str, Callable[[Turns, Config, Batch, str], None]] = {
    "ours": ours,
    "birder": birder,
    "lightly-train": lightly_train,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    turns = Turns()
    if options.threads:
        torch.set_num_threads(options.threads)
    precision = f"compute_precision.autocast={options.precision}"
    config = load_config(None, [*SETTINGS, precision, *options.overrides])
    torch.manual_seed(config.train.seed)
    batch = random_batch(config, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:  # Birder writes logs where it is
        os.chdir(folder)
        LOOPS[options.loop](turns, config, batch, options.precision)


if __name__ == "__main__":
    main()
