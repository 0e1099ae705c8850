"""Features of a folder of photographs: `embed` beside a DataLoader and timm, and what bf16 changes.

    python -m bench.features                      # writes results/features.json and features.md
    python -m bench.features --knn franca_demo    # of a model: kNN of features in fp32 and bf16

The photographs are made from a seed: 500 x 375 pixels, JPEG of quality 90. Every way is a process
of its own, in turn; its images per second are those of the loop over the images, and its seconds
those of the whole process. ViT-S/14 at 224 pixels with random weights, in both the same, so that
features must agree. The peer is timm's network with torchvision's transforms in a DataLoader, where
both are installed; without them only ours is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

import franca_fast as ff
from franca_fast.benchmarks.measure import machine
from franca_fast.evaluation.image.knn import knn_predict
from franca_fast.files import write_json, write_text

RESULTS = Path(__file__).parent / "results" / "features.json"
PEER, OURS = "DataLoader + timm", "embed"
PRECISIONS = ("fp32", "bf16")
KS, TEMPERATURE, FOLDS = (10, 20), 0.07, 7
SPLITS = ["FashionMNIST:split=TRAIN", "FashionMNIST:split=TEST"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="medians count")
    parser.add_argument("--knn", metavar="MODEL", help="measure the kNN of a model, no times")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--way", nargs=2, metavar=("WAY", "PRECISION"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        seconds, features = {PEER: peer, OURS: ours}[args.way[0]](args, args.way[1])
        np.save(args.folder / "features.npy", features.float().numpy())
        print(seconds)
        return
    part, measured = ("knn", knn(args.knn)) if args.knn else ("speed", speed(args))
    command = " ".join(["python -m bench.features", *sys.argv[1:]])
    kept = json.loads(args.output.read_text()) if args.output.exists() else {}
    kept[part] = {"command": command, "machine": machine(), **measured}
    write_json(args.output, kept)
    write_text(args.output.with_suffix(".md"), report(kept))
    print(report(kept))


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Rates and times of every way, which take turns."""
    peers = [PEER] if find_spec("timm") and find_spec("torchvision") else []
    ways = [(way, precision) for precision in PRECISIONS for way in (*peers, OURS)]
    rates = {way: list[float]() for way in ways}
    whole = {way: list[float]() for way in ways}
    features = dict[tuple[str, str], Any]()
    with tempfile.TemporaryDirectory() as folder:
        make_photographs(Path(folder) / "photos", args.images)
        for _ in range(args.repeats):
            for way in ways:
                start = time.perf_counter()
                seconds = run_way(way, folder, args)
                whole[way].append(time.perf_counter() - start)
                rates[way].append(args.images / seconds)
                features[way] = np.load(Path(folder) / "features.npy")
    exact = features[OURS, "fp32"]
    return {
        "images": args.images,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "load": round(os.getloadavg()[0], 1),
        "rows": [
            {
                "way": way[0],
                "precision": way[1],
                "images_per_second": [round(rate, 2) for rate in rates[way]],
                "process_seconds": [round(seconds, 2) for seconds in whole[way]],
                "relative_error": float(
                    np.linalg.norm(features[way] - exact) / np.linalg.norm(exact)
                ),
            }
            for way in ways
        ],
    }


def run_way(way: tuple[str, str], folder: str, args: argparse.Namespace) -> float:
    """Seconds of the loop over the images, in a process of its own."""
    command = [sys.executable, "-m", "bench.features", "--way", *way, "--folder", folder]
    command += ["--batch-size", str(args.batch_size), "--num-workers", str(args.num_workers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def network() -> ff.models.VisionTransformer:
    """ViT-S/14 with random weights that are the same in every process."""
    torch.manual_seed(0)
    return ff.models.build_backbone("vit_small", ffn_layer="mlp", layerscale=0.3).eval()


def ours(args: argparse.Namespace, precision: str) -> tuple[float, torch.Tensor]:
    """Seconds and features by `embed`."""
    model = network()
    start = time.perf_counter()
    embeddings = ff.embed(
        model,
        args.folder / "photos",
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        precision=precision,
    )
    return time.perf_counter() - start, embeddings.features


def peer(args: argparse.Namespace, precision: str) -> tuple[float, torch.Tensor]:
    """Seconds and features by the loop that one writes with timm and torchvision."""
    import timm
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    model = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).eval()
    weights = {name: w for name, w in network().state_dict().items() if name != "mask_token"}
    model.load_state_dict(weights)
    bicubic = transforms.InterpolationMode.BICUBIC
    images = ImageFolder(
        str(args.folder / "photos"),
        transforms.Compose(
            [
                transforms.Resize(224, bicubic),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(ff.data.CropSettings.mean, ff.data.CropSettings.std),
            ]
        ),
    )
    start = time.perf_counter()
    loader = torch.utils.data.DataLoader(
        images, batch_size=args.batch_size, num_workers=args.num_workers
    )
    parts = []
    bf16 = precision == "bf16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for batch, _ in loader:
            parts.append(model(batch))
    return time.perf_counter() - start, torch.cat(parts)


def knn(name: str) -> dict[str, Any]:
    """KNN on all bundled images of Fashion-MNIST, of a model and of its untrained network."""
    model = ff.load_model(name)
    torch.manual_seed(0)
    rows = []
    for weights, encoder in ((name, model), ("random", type(model)(**model.config).eval())):
        accuracies = {}
        for precision in PRECISIONS:
            features = ff.embed(encoder, SPLITS, precision=precision)
            for m in ff.models.default_nesting_dims(model.embed_dim):
                accuracies[precision, m] = cross_validated(features, m)
        rows += [
            {
                "weights": weights,
                "dimensions": m,
                "k": k,
                **{precision: accuracies[precision, m][k] for precision in PRECISIONS},
            }
            for m in ff.models.default_nesting_dims(model.embed_dim)
            for k in KS
        ]
    return {"images": len(features), "folds": FOLDS, "rows": rows}


def cross_validated(features: ff.evaluation.Embeddings, m: int) -> dict[int, float]:
    """Accuracy in per cent of each part of the images with the others as the memory."""
    x, labels = features.features[:, :m], features.labels
    assert labels is not None
    fold = torch.arange(len(x)) % FOLDS
    right = dict.fromkeys(KS, 0)
    for part in range(FOLDS):
        memory, queries = fold != part, fold == part
        predicted = knn_predict(x[memory], labels[memory], x[queries], KS, TEMPERATURE)
        for k in KS:
            right[k] += int((predicted[k] == labels[queries]).sum())
    return {k: 100 * right[k] / len(x) for k in KS}


def make_photographs(folder: Path, number: int) -> None:
    """Smooth shapes of several sizes, edges, and the noise of a camera."""
    rng = np.random.default_rng(0)
    width, height = 500, 375
    (folder / "one").mkdir(parents=True)
    for i in range(number):
        pixels = np.full((height, width, 3), 128.0)
        for cells, contrast in ((4, 90), (12, 40), (50, 18)):
            coarse = rng.normal(0, contrast, (cells * 3 // 4, cells, 3)).astype(np.float32)
            planes = [Image.fromarray(coarse[..., c]) for c in range(3)]
            smooth = [p.resize((width, height), Image.Resampling.BICUBIC) for p in planes]
            pixels += np.stack([np.asarray(plane) for plane in smooth], -1)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, w, h = (int(v) for v in rng.integers((0, 0, 10, 10), (width, height, 160, 160)))
            colour = tuple(int(v) for v in rng.integers(0, 256, 3))
            (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + w, y + h), colour)
        noisy = np.asarray(image) + rng.normal(0, 6, (height, width, 1))
        noisy += rng.normal(0, 2, (height, width, 3))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(folder / "one" / f"{i:04d}.jpg", quality=90)


def report(kept: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# Features", "", "What was measured, and how, is said in `bench/features.py`."]
    if "speed" in kept:
        lines += _speed_table(kept["speed"])
    if "knn" in kept:
        lines += _knn_table(kept["knn"])
    return "\n".join(lines) + "\n"


def _speed_table(speed: dict[str, Any]) -> list[str]:
    m = speed["machine"]
    lines = [
        "",
        f"`{speed['command']}`: {speed['images']} photographs, ViT-S/14, batches of "
        f"{speed['batch_size']}, {speed['num_workers']} workers; {m['cpu']}, {m['cores']} cores, "
        f"torch {m['torch']}, load {speed['load']}; medians.",
        "",
        "| features | precision | images per second | whole process, s | relative error |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in speed["rows"]:
        rate, whole = (
            statistics.median(row[name]) for name in ("images_per_second", "process_seconds")
        )
        error = f"{row['relative_error']:.1e}" if row["relative_error"] else "0"
        lines.append(f"| {row['way']} | {row['precision']} | {rate:.1f} | {whole:.1f} | {error} |")
    return lines


def _knn_table(knn: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"`{knn['command']}`: accuracy in per cent on the {knn['images']} bundled images of "
        f"Fashion-MNIST, each of {knn['folds']} parts with the others as the memory.",
        "",
        "| weights | dimensions | k | fp32 | bf16 | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in knn["rows"]:
        fp32, bf16 = row["fp32"], row["bf16"]
        lines.append(
            f"| {row['weights']} | {row['dimensions']} | {row['k']} | {fp32:.2f} | {bf16:.2f} "
            f"| {bf16 - fp32:+.2f} |"
        )
    mean = statistics.mean(row["bf16"] - row["fp32"] for row in knn["rows"])
    return [*lines, "", f"The mean difference is {mean:+.2f} points."]


if __name__ == "__main__":
    main()
