from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from franca_fast.cli import demo
from franca_fast.data import open_images

# The demo on a few images and a small recipe, in a process that is killed before its fourth step.
SCRIPT = """
import os, signal, sys
from franca_fast.cli import demo
from franca_fast.cli.main import main
from franca_fast.models import ARCHITECTURES
from franca_fast.training.run import Run
shard, demo._RECIPE, folder = sys.argv[1:]
ARCHITECTURES["vit_tiny"] = {"embed_dim": 32, "depth": 1, "num_heads": 2}
demo._TEST = shard
demo._KNN = [f"evaluation.knn_{part}={shard}" for part in ("train", "test")]
train_on = Run.train_on
def deadly(self, batch, **options):
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_on(self, batch, **options)
Run.train_on = deadly
main(["demo", "--output-dir", folder, "train.total_steps=6"])
"""


@pytest.fixture
def run_demo(run, shard: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setattr(demo, "_RECIPE", str(config_file))
    monkeypatch.setattr(demo, "_TEST", str(shard))
    monkeypatch.setattr(demo, "_KNN", [f"evaluation.knn_{p}={shard}" for p in ("train", "test")])
    return lambda folder, *more: run("demo", "--output-dir", folder, "train.total_steps=6", *more)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_table_pictures_and_model(run_demo, tmp_path: Path) -> None:
    outcome = run_demo(tmp_path / "demo")
    assert outcome.code == 0
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["steps"] == 6
    dims = ["2", "4", "8", "16", "32"]
    for moment in ("knn_before", "knn_after"):
        assert list(results[moment]) == dims
        assert list(results[moment]["32"]) == ["10", "20", "100", "200"]
    markdown = (tmp_path / "demo" / "results.md").read_text()
    for m in dims:
        before, after = (results[f"knn_{when}"][m]["20"] for when in ("before", "after"))
        row = [m, f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"]
        assert row in [line.split() for line in outcome.out.splitlines()]
        assert f"| {' | '.join(row)} |" in markdown
    for pixels in ("raw pixels", "centred"):
        accuracy = f"{results['knn_pixels'][pixels]['20']:.1f}"
        assert [*pixels.split(), accuracy] in [line.split() for line in outcome.out.splitlines()]
        assert f"| {pixels} |  | {accuracy} |  |" in markdown
    for name in demo._FILES:
        assert (tmp_path / "demo" / name).is_file()
        assert str(tmp_path / "demo" / name) in outcome.out
    assert Image.open(tmp_path / "demo" / "pca.png").width > 10 * 84


def test_pixels_are_classified_as_they_are_and_less_their_mean() -> None:
    images = list(open_images(demo._TEST))
    pixels = np.stack([np.asarray(image)[..., 0].ravel() / 255 for _, image, _ in images])
    one_hot = np.eye(10)[[label for _, _, label in images]]
    found = demo.pixel_accuracies(demo._TEST, demo._TEST)
    for name, x in {"raw pixels": pixels, "centred": pixels - pixels.mean(0)}.items():
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        similarity = x @ x.T
        tenth = np.sort(similarity, axis=1)[:, -10, None]
        votes = np.where(similarity >= tenth, np.exp(similarity / 0.07), 0) @ one_hot
        accuracy = 100 * (votes.argmax(1) == one_hot.argmax(1)).mean()
        assert found[f"pixels/{name}/10"] == pytest.approx(accuracy, abs=0.1)  # a tie


def test_without_matplotlib_all_but_the_pictures_is_there(
    run_demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "matplotlib.figure", None)
        outcome = run_demo(tmp_path / "demo")
    assert outcome.code == 0
    assert "warning: pictures need matplotlib" in outcome.err
    assert "pip install 'franca-fast[plots]'" in outcome.err
    for name in demo._FILES:
        is_picture = name.endswith(".png")
        assert (tmp_path / "demo" / name).exists() is not is_picture
        assert (str(tmp_path / "demo" / name) in outcome.out) is not is_picture
    run_demo(tmp_path / "demo")
    assert (tmp_path / "demo" / "pca.png").is_file()


def test_images_of_the_accuracies_are_not_overridden(run_demo, shard: Path, tmp_path: Path) -> None:
    others = ("evaluation.knn_train=absent", "evaluation.knn_test=absent")
    assert run_demo(tmp_path / "demo", *others).code == 0
    assert str(shard) in (tmp_path / "demo" / "config.yaml").read_text()


def test_finished_demo_is_shown_again(run_demo, tmp_path: Path) -> None:
    first = run_demo(tmp_path / "demo")
    results = (tmp_path / "demo" / "results.json").read_bytes()
    again = run_demo(tmp_path / "demo")
    assert again.out == (
        "This demo was complete (6 steps); nothing was trained again.\n" + first.out
    )
    assert (tmp_path / "demo" / "results.json").read_bytes() == results


def test_killed_demo_continues_as_if_nothing_had_happened(
    run_demo, shard: Path, config_file: Path, tmp_path: Path
) -> None:
    whole = run_demo(tmp_path / "whole")
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(shard), str(config_file), str(folder)]
    killed = subprocess.run(command, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert losses(folder) == losses(tmp_path / "whole")[:3]
    resumed = run_demo(folder)
    assert losses(folder) == losses(tmp_path / "whole")
    table = [line for line in whole.out.splitlines() if line[:10].strip().isdecimal()]
    assert len(table) == 5
    assert table == [line for line in resumed.out.splitlines() if line[:10].strip().isdecimal()]


def test_output_directory_in_use(
    fails, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("franca_fast.cli.demo._RECIPE", str(config_file))
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("precious")
    assert "chapter.tex" in fails("demo", "--output-dir", folder)
