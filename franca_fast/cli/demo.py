"""Pretrain a small nested model on bundled Fashion-MNIST images, and show what it learnt.

Takes minutes on two processor cores and downloads nothing. Writes a table of kNN accuracies before
and after training, pictures of patch features, the loss curve and the trained model. The same
command continues a demo that was interrupted. Values of the configuration may follow as
section.key=value, for instance train.total_steps=200.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from franca_fast.cli.common import add_overrides, table
from franca_fast.files import write_json, write_text

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from franca_fast.config import Config
    from franca_fast.models import VisionTransformer
    from franca_fast.training import PretrainResult

GROUP = "train"
_RECIPE = "demo"
_K = 20  # of the table; results.json has the other k too
_SMOOTHING = 30  # the drawn mean of the loss covers one part in so many of the steps
_UNTRAINED = "untrained/backbone"
_TRAIN, _TEST = "FashionMNIST:split=TRAIN", "FashionMNIST:split=TEST"
# After the overrides: the table is one of Fashion-MNIST, whatever the model was trained on.
_KNN = (f"evaluation.knn_train={_TRAIN}", f"evaluation.knn_test={_TEST}")
_CLASSES = "T-shirt,trousers,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot"
_KNN_METRIC, _PIXEL_METRIC = "evaluation/knn/", "evaluation/pixels/"  # then <row>/<k>
_SIDE = 28  # of the images, pixels
_FILES = {
    "results.md": "this table",
    "results.json": "the same, with every k",
    "loss.png": "the loss at every step",
    "pca.png": "patch features of test images, before and after",
    "exported/teacher.safetensors": "the trained backbone, for franca-fast embed and load_model",
    "metrics.jsonl": "everything measured at every step",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output-dir",
        default="franca_demo",
        metavar="DIR",
        help="where everything is written (default: franca_demo)",
    )
    parser.add_argument(
        "--no-resume",
        action="store_true",
        help="start from the beginning; a demo that is there is moved aside, not deleted",
    )
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    from franca_fast.config import load_config
    from franca_fast.evaluation.pictures import NO_PICTURES, can_draw
    from franca_fast.hub import save_backbone
    from franca_fast.training import pretrain

    config = load_config(_RECIPE, [*args.overrides, *_KNN])
    folder = Path(args.output_dir)
    evaluated: list[int] = []  # after so many steps, in this process

    def before(step: int, backbone: VisionTransformer) -> dict[str, float]:
        """Before the first step: keeps the network, for the pictures, and looks at the pixels."""
        evaluated.append(step)
        if step > 0:
            return {}
        save_backbone(backbone, folder / _UNTRAINED)
        return pixel_accuracies(config.evaluation.knn_train, config.evaluation.knn_test)

    result = pretrain(config, folder, resume=not args.no_resume, evaluate=before)
    if result.exported is None:
        print(f"Stopped after step {result.steps}; the same command continues.")
        return 0
    if not evaluated:
        print(f"This demo was complete ({result.steps} steps); nothing was trained again.")
    results = collect(config, result)
    write_json(folder / "results.json", results)
    write_text(folder / "results.md", summary(results, markdown=True) + "\n")
    if can_draw():
        draw_loss(folder)
        draw_patches(folder, result.exported)
    else:
        print(f"warning: {NO_PICTURES}; then the same command draws them", file=sys.stderr)
    print(f"\n{summary(results)}\n\nWritten:")
    files = {folder / name: what for name, what in _FILES.items() if (folder / name).exists()}
    print(table(("file", "what it holds"), list(files.items())))
    return 0


def collect(config: Config, result: PretrainResult) -> dict[str, Any]:
    """Everything that results.json holds, read from the run's metrics."""
    lines = _metrics(result.output_dir)
    steps = [line for line in lines if "loss" in line]
    measured = [line for line in lines if any(key.startswith(_KNN_METRIC) for key in line)]
    batch = config.train.batch_size_per_gpu
    return {
        "architecture": config.student.arch,
        "steps": result.steps,
        "images_per_step": batch,
        "training_seconds": round(sum(batch / line["images_per_second"] for line in steps), 1),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "knn_before": _accuracies(measured[0], _KNN_METRIC),
        "knn_after": _accuracies(measured[-1], _KNN_METRIC),
        "knn_pixels": _accuracies(measured[0], _PIXEL_METRIC),
    }


def pixel_accuracies(train: str, test: str) -> dict[str, float]:
    """What the same kNN makes of the pixels, which is what learnt features have to beat.

    Args:
        train: labelled images to learn from.
        test: those to classify.

    Returns:
        accuracies of k neighbours in per cent, "pixels/raw pixels/<k>", and with the mean training
        image taken out, "pixels/centred/<k>".
    """
    from franca_fast.data import CropSettings
    from franca_fast.evaluation import embed, knn

    def pixels(images: Tensor) -> Tensor:
        # Of grey images one channel is all there is; from 0 to 1 again.
        return images[:, 0].flatten(1) * CropSettings.std[0] + CropSettings.mean[0]

    known, asked = (embed(pixels, source, img_size=_SIDE) for source in (train, test))
    mean = known.features.mean(0)
    accuracies: dict[str, float] = {}
    for name, offset in (("raw pixels", 0.0 * mean), ("centred", mean)):
        parts = [replace(part, features=part.features - offset) for part in (known, asked)]
        (at_k,) = knn(parts[0], parts[1]).values()
        accuracies |= {f"pixels/{name}/{k}": accuracy for k, accuracy in at_k.items()}
    return accuracies


def summary(results: dict[str, Any], *, markdown: bool = False) -> str:
    """The table of accuracies with a line above, as plain text or Markdown."""
    header = ("dimensions", "before", "after", "gain")
    rows = []
    for m, after in results["knn_after"].items():
        pair = (results["knn_before"][m][str(_K)], after[str(_K)])
        rows.append((m, *(f"{value:.1f}" for value in pair), f"{pair[1] - pair[0]:+.1f}"))
    for name, at_k in results["knn_pixels"].items():
        rows.append((name, "", f"{at_k[str(_K)]:.1f}", ""))
    minutes = results["training_seconds"] / 60
    title = (
        f"kNN accuracy (k = {_K}, per cent) on Fashion-MNIST, by number of feature dimensions, "
        f"before and after {results['steps']} steps in {minutes:.1f} minutes"
    )
    if not markdown:
        return f"{title}\n{table(header, rows, numeric=4)}"
    lines = [header, ("---:",) * len(header), *rows]
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def draw_loss(folder: Path) -> None:
    """Draws the loss of every step, and its mean over the last ones, into loss.png."""
    from franca_fast.evaluation.pictures import curve, save_png

    finite = [line for line in _metrics(folder) if line.get("loss") is not None]
    steps, losses = [line["step"] for line in finite], [line["loss"] for line in finite]
    window = max(1, len(steps) // _SMOOTHING)
    figure = curve(steps, losses, window, "Pretraining on Fashion-MNIST", "total loss (nats)")
    save_png(figure, folder / "loss.png")


def draw_patches(folder: Path, exported: Path) -> None:
    """Draws patch features of one test image per class, before and after, into pca.png."""
    from franca_fast.data import open_images
    from franca_fast.evaluation.pca import PCA_TITLE, as_seen, pca_pictures
    from franca_fast.evaluation.pictures import save_png, sheet
    from franca_fast.hub import load_model

    one_of_each: dict[int, Image.Image] = {}
    for _, image, label in open_images(_TEST):
        one_of_each.setdefault(label or 0, image)
    labels = sorted(one_of_each)
    images = [one_of_each[label] for label in labels]
    before, after = load_model(folder / _UNTRAINED), load_model(exported)
    size = after.config["img_size"]
    rows = {
        "image": [as_seen(image, size) for image in images],
        "before": pca_pictures(before, images, size),
        "after": pca_pictures(after, images, size),
    }
    captions = [_CLASSES.split(",")[label] for label in labels]
    save_png(sheet(rows, PCA_TITLE, captions), folder / "pca.png")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _accuracies(line: dict[str, Any], metric: str) -> dict[str, dict[str, float]]:
    """{row: {k: accuracy}} of a line of metrics; the keys are text, as JSON has them."""
    accuracies: dict[str, dict[str, float]] = {}
    for key, accuracy in line.items():
        if key.startswith(metric):
            row, k = key.removeprefix(metric).split("/")
            accuracies.setdefault(row, {})[k] = accuracy
    return accuracies
