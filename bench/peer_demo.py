"""Trains lightly-train's DINOv2 as `franca-fast demo` trains ours, and measures the same kNN.

    python bench/peer_demo.py --seed 0 [section.key=value ...]

Network, heads (without nesting), prototypes, learning rate, batch, number of steps, sizes and
scales of the crops, flips and brightness are those of the demo's recipe; masks, interpolation and
the rest of the augmentation are lightly-train's. It needs `pip install lightly-train`. Each seed's
accuracy and seconds are added to results/peer_demo.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from franca_fast.benchmarks import machine  # noqa: E402
from franca_fast.config import Config, load_config  # noqa: E402
from franca_fast.data import eval_transform, fashion_mnist_shards, open_images  # noqa: E402
from franca_fast.evaluation.embeddings import Embeddings  # noqa: E402
from franca_fast.evaluation.image.knn import knn  # noqa: E402
from franca_fast.models.architectures import ARCHITECTURES  # noqa: E402

K = 20


def write_images(folder: Path) -> int:
    """The bundled training images as files, which is what lightly-train reads; their number."""
    n = 0
    for n, (_, image, _label) in enumerate(open_images(fashion_mnist_shards("train")), 1):
        image.convert("RGB").save(folder / f"{n:05d}.png")
    return n


def network(config: Config) -> torch.nn.Module:
    """The demo's backbone, as lightly-train has it."""
    from lightly_train._models.dinov2_vit.dinov2_vit_src.models import vision_transformer as vits

    student = config.student
    return vits.DinoVisionTransformer(
        img_size=config.crops.global_crops_size,
        patch_size=student.patch_size,
        **ARCHITECTURES[student.arch],
        ffn_layer=student.ffn_layer,
        init_values=student.layerscale,
        drop_path_rate=0.0,
        block_chunks=0,
    )


def method_arguments(config: Config) -> dict[str, Any]:
    """What lightly-train calls the settings of the recipe."""
    dino, teacher, optim, epoch = config.dino, config.teacher, config.optim, config.train
    return {
        "ibot_separate_head": config.ibot.separate_head,
        "hidden_dim": dino.head_hidden_dim,
        "dino_bottleneck_dim": dino.head_bottleneck_dim,
        "ibot_bottleneck_dim": config.ibot.head_bottleneck_dim,
        "output_dim": dino.head_n_prototypes,
        "dino_loss_weight": dino.loss_weight,
        "ibot_loss_weight": config.ibot.loss_weight,
        "koleo_loss_weight": dino.koleo_loss_weight,
        "center_method": "sinkhorn_knopp",
        "student_freeze_last_layer_steps": 0,
        "momentum_start": teacher.momentum_teacher,
        "momentum_end": teacher.final_momentum_teacher,
        "teacher_temp_start": teacher.teacher_temp,
        "teacher_temp_end": teacher.teacher_temp,
        "teacher_temp_warmup_steps": 1,
        "mask_ratio_min": config.ibot.mask_ratio_min_max[0],
        "mask_ratio_max": config.ibot.mask_ratio_min_max[1],
        "mask_probability": config.ibot.mask_sample_probability,
        "min_lr": optim.min_lr,
        "warmup_steps": optim.warmup_epochs * epoch.OFFICIAL_EPOCH_LENGTH,
        "layerwise_decay": optim.layerwise_decay,
        "patch_embed_lr_multiplier": optim.patch_embed_lr_mult,
        "reference_batch_size": epoch.batch_size_per_gpu,  # takes the learning rate as it is
        "weight_decay_start": optim.weight_decay,
        "weight_decay_end": optim.weight_decay_end,
        "gradient_clip_val": optim.clip_grad,
    }


def transform_arguments(config: Config) -> dict[str, Any]:
    """The crops of the recipe and their flips and brightness; no colours, blur or solarizing."""
    crops, augmentation = config.crops, config.augmentation

    def scales(low_high: list[float]) -> dict[str, float]:
        return dict(zip(("min_scale", "max_scale"), low_high, strict=True))

    return {
        "image_size": (crops.global_crops_size,) * 2,
        "random_resize": scales(crops.global_crops_scale),
        "color_jitter": {
            "prob": augmentation.jitter_probability,
            "strength": 1.0,
            "brightness": augmentation.brightness,
            "contrast": augmentation.contrast,
            "saturation": 0.0,
            "hue": 0.0,
        },
        "random_flip": {"horizontal_prob": augmentation.flip_probability},
        "random_gray_scale": None,
        "gaussian_blur": None,
        "solarize": None,
        "global_view_1": {"gaussian_blur": None, "solarize": None},
        "local_view": {
            "num_views": crops.local_crops_number,
            "view_size": (crops.local_crops_size,) * 2,
            "random_resize": scales(crops.local_crops_scale),
            "gaussian_blur": None,
        },
    }


@torch.inference_mode()
def accuracy(model: torch.nn.Module, size: int) -> float:
    """KNN accuracy, per cent, of the normalised CLS tokens of the bundled images."""
    transform, found = eval_transform(size), []
    for split in ("train", "test"):
        shards = open_images(fashion_mnist_shards(split))
        opened = [(transform(image), label) for _, image, label in shards]
        images = torch.stack([image for image, _ in opened]).split(250)
        tokens = torch.cat([model.forward_features(part)["x_norm_clstoken"] for part in images])
        labels = torch.tensor([label for _, label in opened])
        found.append(Embeddings([""] * len(labels), tokens.float(), labels))
    (by_k,) = knn(*found, ks=(K,)).values()
    return by_k[K]


def train(config: Config, seed: int) -> dict[str, Any]:
    """A whole run; kNN accuracy before and after, and the seconds that it took."""
    import lightly_train

    model, size = network(config), config.crops.global_crops_size
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder, "images"), Path(folder, "out")
        images.mkdir()
        steps, batch = config.total_steps, config.train.batch_size_per_gpu
        epochs = steps * batch // write_images(images) + 2
        before = accuracy(model.eval(), size)
        begin = time.perf_counter()
        lightly_train.pretrain(
            out=out,
            data=images,
            model=model,
            method="dinov2",
            method_args=method_arguments(config),
            epochs=epochs,
            batch_size=batch,
            num_workers=0,
            accelerator="cpu",
            precision="32-true",
            seed=seed,
            optim="adamw",
            optim_args={"lr": config.optim.lr, "weight_decay": config.optim.weight_decay},
            transform_args=transform_arguments(config),
            trainer_args={"max_steps": steps},
            loggers={"tensorboard": None},
        )
        seconds = time.perf_counter() - begin
        state = torch.load(out / "exported_models" / "exported_last.pt", weights_only=True)
    model.load_state_dict(state)
    return {
        "seed": seed,
        "steps": steps,
        "seconds": round(seconds, 1),
        "knn_before": before,
        "knn_after": accuracy(model.eval(), size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "peer_demo.json")
    options = parser.parse_intermixed_args()
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
    torch.manual_seed(options.seed)
    row = train(load_config("demo", options.overrides), options.seed)
    row |= {"lightly_train": version("lightly-train"), "overrides": options.overrides}
    row["machine"] = machine()
    found = json.loads(options.out.read_text()) if options.out.exists() else []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([*found, row], indent=1) + "\n")
    print(f"kNN (k {K}) {row['knn_before']:.1f} -> {row['knn_after']:.1f} in {row['seconds']} s")


if __name__ == "__main__":
    main()
