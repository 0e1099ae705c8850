"""Pretrain a small nested model on bundled Fashion-MNIST images, and show what it learnt.

Takes minutes on two processor cores and downloads nothing. Writes a table of kNN accuracies before
and after training, pictures of patch features, the loss curve and the trained model. The same
command continues a demo that was interrupted. Values of the configuration may follow as
section.key=value, for instance train.total_steps=200.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from franca_fast.cli.common import table
from franca_fast.files import write_json, write_text

if TYPE_CHECKING:
    from PIL import Image

    from franca_fast.models import VisionTransformer
    from franca_fast.training import Config, PretrainResult

_RECIPE = "demo"
_K = 20  # of the table; results.json has the other k too
_SMOOTHING = 30  # the drawn mean of the loss covers one part in so many of the steps
_UNTRAINED = "untrained/backbone"
_METRIC = "evaluation/knn/"  # then <dimension>/<k>
_FILES = {
    "results.md": "this table",
    "results.json": "the same, with every k",
    "loss.png": "the loss at every step",
    "pca.png": "patch features of test images, before and after",
    "exported/teacher.safetensors": "the trained backbone, for franca-fast embed and load_model",
    "metrics.jsonl": "everything measured at every step",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
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
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", default=[], help="values of the configuration"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from franca_fast.training import load_config, pretrain

    config = load_config(_RECIPE, args.overrides)
    folder = Path(args.output_dir)
    evaluation = Evaluation(config, folder)
    result = pretrain(config, folder, resume=not args.no_resume, evaluate=evaluation)
    if result.exported is None:
        print(f"Stopped after step {result.steps}; the same command continues.")
        return 0
    if not evaluation.was_called:
        print(f"This demo was complete ({result.steps} steps); nothing was trained again.")
    results = collect(config, result)
    write_json(folder / "results.json", results)
    write_text(folder / "results.md", summary(results, markdown=True) + "\n")
    draw_loss(folder)
    draw_patches(folder, result.exported)
    print(f"\n{summary(results)}\n\nWritten:")
    print(
        table(("file", "what it holds"), [(folder / name, what) for name, what in _FILES.items()])
    )
    return 0


class Evaluation:
    """What `pretrain` calls before the first step and after the last: kNN at every dimension.

    The accuracies go to metrics.jsonl, so an interrupted demo keeps them. The network as it was
    before the first step is kept too, for the pictures.

    Attributes:
        was_called: whether anything was evaluated, and so trained, in this process.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._nesting_dims = config.dino.nesting_dims
        self._folder = folder
        self.was_called = False

    def __call__(self, step: int, backbone: VisionTransformer) -> dict[str, float]:
        """Returns {"knn/<dimension>/<k>": accuracy in per cent} of the CLS features."""
        from franca_fast.data import fashion_mnist_shards
        from franca_fast.evaluation import embed, knn
        from franca_fast.hub import save_backbone
        from franca_fast.models import default_nesting_dims

        self.was_called = True
        if step == 0:
            save_backbone(backbone, self._folder / _UNTRAINED)
        train, test = (embed(backbone, fashion_mnist_shards(split)) for split in ("train", "test"))
        dims = self._nesting_dims or default_nesting_dims(backbone.embed_dim)
        return {
            f"knn/{m}/{k}": accuracy
            for m, at_k in knn(train, test, nesting_dims=dims).items()
            for k, accuracy in at_k.items()
        }


def collect(config: Config, result: PretrainResult) -> dict[str, Any]:
    """Everything that results.json holds, read from the run's metrics."""
    lines = _metrics(result.output_dir)
    steps = [line for line in lines if "loss" in line]
    measured = [line for line in lines if any(key.startswith(_METRIC) for key in line)]
    batch = config.train.batch_size_per_gpu
    return {
        "architecture": config.student.arch,
        "steps": result.steps,
        "images_per_step": batch,
        "training_seconds": round(sum(batch / line["images_per_second"] for line in steps), 1),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "knn_before": _accuracies(measured[0]),
        "knn_after": _accuracies(measured[-1]),
    }


def summary(results: dict[str, Any], *, markdown: bool = False) -> str:
    """The table of accuracies with a line above, as plain text or Markdown."""
    header = ("dimensions", "before", "after", "gain")
    rows = []
    for m, after in results["knn_after"].items():
        pair = (results["knn_before"][m][str(_K)], after[str(_K)])
        rows.append((m, *(f"{value:.1f}" for value in pair), f"{pair[1] - pair[0]:+.1f}"))
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
    from franca_fast.evaluation.pictures import curves, moving_average, save_png

    finite = [line for line in _metrics(folder) if line.get("loss") is not None]
    steps, losses = [line["step"] for line in finite], [line["loss"] for line in finite]
    window = max(1, len(steps) // _SMOOTHING)
    mean = (steps, moving_average(losses, window))
    series = {"each step": (steps, losses), f"mean of {window} steps": mean}
    save_png(curves(series, "Training loss", "step"), folder / "loss.png")


def draw_patches(folder: Path, exported: Path) -> None:
    """Draws patch features of one test image per class, before and after, into pca.png."""
    from franca_fast.data import fashion_mnist_shards, open_images
    from franca_fast.evaluation.pca import as_seen, pca_pictures
    from franca_fast.evaluation.pictures import save_png, sheet
    from franca_fast.hub import load_model

    one_of_each: dict[int, Image.Image] = {}
    for _, image, label in open_images(fashion_mnist_shards("test")):
        one_of_each.setdefault(label or 0, image)
    images = [one_of_each[label] for label in sorted(one_of_each)]
    before, after = load_model(folder / _UNTRAINED), load_model(exported)
    size = after.config["img_size"]
    rows = {
        "image": [as_seen(image, size) for image in images],
        "before": pca_pictures(before, images, size),
        "after": pca_pictures(after, images, size),
    }
    save_png(sheet(rows, cell=84), folder / "pca.png")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _accuracies(line: dict[str, Any]) -> dict[str, dict[str, float]]:
    """{dimension: {k: accuracy}} of a line of metrics; the keys are text, as JSON has them."""
    accuracies: dict[str, dict[str, float]] = {}
    for key, accuracy in line.items():
        if key.startswith(_METRIC):
            m, k = key.removeprefix(_METRIC).split("/")
            accuracies.setdefault(m, {})[k] = accuracy
    return accuracies
