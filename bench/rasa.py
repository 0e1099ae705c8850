"""What removing positions does to the demo's model: position, and accuracy of images and patches.

    franca-fast demo --output-dir franca_demo
    python bench/rasa.py franca_demo

Writes results/rasa/results.json, results.md and positions.png. Projectors are fitted on the 6,000
training images of the bundled Fashion-MNIST; everything is measured on the 1,000 test images, with
probes of their own (half to fit, half to measure). Accuracies are in per cent:

- image kNN: 20 nearest neighbours of the mean patch token (the CLS token is not touched);
- patch kNN: every patch token of the test images by its 20 nearest of the tokens of 1,500 training
  images, the class of the image being the label;
- patch linear: the same labels by ridge regression on all tokens of the training images.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import franca_fast as ff
from franca_fast.data import fashion_mnist_shards
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.encoders import inference, patch_token_grid
from franca_fast.evaluation.image.knn import knn, knn_predict
from franca_fast.files import write_json, write_text
from franca_fast.rasa import FitSettings, fit, position_report

RESULTS = Path(__file__).parent / "results" / "rasa"
K, TEMPERATURE, MEMORY_IMAGES = 20, 0.07, 1500
VARIANTS = {
    "the paper's": FitSettings(),
    "until saturated": FitSettings(iterations=40),
    "covariance": FitSettings(readout="covariance"),
    "covariance, central crops": FitSettings(readout="covariance", crops="center"),
    "until saturated, central crops": FitSettings(iterations=40, crops="center"),
}


def tokens_and_labels(model: Any, split: str) -> tuple[Tensor, Tensor]:
    """Patch tokens [n, patches, d] and labels [n] of the bundled images."""
    transform, size = ff.data.eval_transform(model.config["img_size"]), 250
    opened = ff.data.open_images(fashion_mnist_shards(split))
    pairs = [(transform(image), label) for _, image, label in opened]
    parts = []
    with inference(model) as device:
        for i in range(0, len(pairs), size):
            images = torch.stack([image for image, _ in pairs[i : i + size]]).to(device)
            parts.append(patch_token_grid(model, images).flatten(1, 2).cpu())
    return torch.cat(parts), torch.tensor([label for _, label in pairs])


def accuracies(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The three accuracies of the module's docstring."""
    (x, x_labels), (y, y_labels) = train, test
    n = x.shape[1]
    images = [
        Embeddings([""] * len(z), z.mean(1), labels) for z, labels in ((x, x_labels), (y, y_labels))
    ]
    memory, memory_labels = x[:MEMORY_IMAGES].flatten(0, 1), x_labels[:MEMORY_IMAGES]
    truth = y_labels.repeat_interleave(n)
    nearest = knn_predict(
        memory, memory_labels.repeat_interleave(n), y.flatten(0, 1), (K,), TEMPERATURE
    )[K]
    linear = _ridge_classes(x.flatten(0, 1), x_labels.repeat_interleave(n), y.flatten(0, 1))
    return {
        "image_knn": knn(*images, ks=(K,))[x.shape[2]][K],
        "patch_knn": 100 * (nearest == truth).double().mean().item(),
        "patch_linear": 100 * (linear == truth).double().mean().item(),
    }


def measure(model: Any) -> tuple[dict[str, Any], Any]:
    """All figures, and the report whose picture is kept."""
    train, test = (tokens_and_labels(model, split) for split in ("train", "test"))
    lines: dict[str, Any] = {"none": {"accuracies": accuracies(train, test)}}
    for name, settings in VARIANTS.items():
        start = time.perf_counter()
        projector = fit(model, fashion_mnist_shards("train"), settings)
        seconds = time.perf_counter() - start
        matrix = projector.matrix().float()
        reports = {
            crops: position_report(
                model, fashion_mnist_shards("test"), projector, FitSettings(crops=crops)
            )
            for crops in ("random", "center")
        }
        cleaned = [(projector.apply(tokens), labels) for tokens, labels in (train, test)]
        lines[name] = {
            "fit_seconds": round(seconds, 1),
            "rank": projector.rank,
            "iterations": projector.facts["iterations"],
            "idempotence_error": (matrix @ matrix - matrix).norm().item(),
            "held_out": {crops: report.as_dict() for crops, report in reports.items()},
            "accuracies": accuracies(*cleaned),
        }
        print(name, lines[name]["accuracies"], flush=True)
        if name == "covariance":
            pictured = reports["random"]
    return lines, pictured


def summary(lines: dict[str, Any]) -> str:
    """The table in Markdown."""
    header = (
        "fit",
        "directions",
        "R2 before",
        "R2 after",
        "R2 after, central crops",
        "energy removed",
        "image kNN",
        "patch kNN",
        "patch linear",
    )
    rows = [header, ("---", *["---:"] * (len(header) - 1))]
    for name, line in lines.items():
        cells = [name, "0", "", "", "", ""]
        if "held_out" in line:
            random, center = (line["held_out"][crops]["steps"] for crops in ("random", "center"))
            cells = [name, str(line["rank"])]
            cells += [f"{step['ridge_r2']:.3f}" for step in (random[0], random[-1], center[-1])]
            cells += [f"{100 * center[-1]['energy_removed']:.1f}"]
        rows.append((*cells, *(f"{value:.1f}" for value in line["accuracies"].values())))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the folder of a demo")
    args = parser.parse_args()
    lines, pictured = measure(ff.load_model(args.model))
    command = " ".join(("python", "bench/rasa.py", Path(args.model).name))
    machine = {"processor": platform.machine(), "torch": torch.__version__}
    threads = torch.get_num_threads()
    content = {"command": command, "machine": machine, "threads": threads, "variants": lines}
    write_json(RESULTS / "results.json", content)
    write_text(RESULTS / "results.md", f"`{command}`\n\n{summary(lines)}\n")
    pictured.save_picture(RESULTS / "positions.png")
    sys.stdout.write(summary(lines) + "\n")


def _ridge_classes(x: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    x, queries = x.double(), queries.double()
    mean, targets = x.mean(0), F.one_hot(labels).double()
    centred = x - mean
    gram = centred.T @ centred
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, centred.T @ (targets - targets.mean(0)))
    return ((queries - mean) @ weights + targets.mean(0)).argmax(1)


if __name__ == "__main__":
    main()
