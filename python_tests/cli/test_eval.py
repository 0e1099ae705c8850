from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest


def test_knn(run, model_file: Path, image_folder: Path, tmp_path: Path) -> None:
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    outcome = run(*command, "--k", 1, 3, "--nested", "--output", tmp_path / "knn.json")
    assert outcome.code == 0
    result = json.loads((tmp_path / "knn.json").read_text())
    assert list(result["accuracy"]) == ["2", "4", "8", "16", "32"]
    assert result["accuracy"]["32"]["1"] == 100.0
    assert "100.0" in outcome.out
    assert result["class_names"] == ["a", "b"]
    images = result["test"]["images"]
    assert images["found"] == images["used"] == len(list(image_folder.rglob("*.png")))


def test_the_precision_is_said_and_kept(
    run, model_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    outcome = run(*command, "--precision", "bf16", "--output", tmp_path / "knn.json")
    assert "features computed in bf16" in outcome.out
    result = json.loads((tmp_path / "knn.json").read_text())
    assert [result[role]["precision"] for role in ("train", "test")] == ["bf16", "bf16"]


def test_knn_without_labels(fails, model_file: Path, image_folder: Path) -> None:
    images = image_folder / "a"
    command = ["eval", "knn", model_file, "--train", images, "--test", images]
    assert "without a label" in fails(*command)


@pytest.mark.parametrize("temperature", ["0", "-1", "nan", "inf"])
def test_knn_checks_the_temperature_before_it_reads_anything(fails, temperature: str) -> None:
    command = ["eval", "knn", "absent", "--train", "absent", "--test", "absent"]
    assert "--temperature" in fails(*command, "--temperature", temperature)


def test_existing_output(fails, model_file: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "knn.json").write_text("precious")
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    assert "exists" in fails(*command, "--output", tmp_path / "knn.json")


def test_an_output_without_a_name_is_refused(fails, model_file: Path, image_folder: Path) -> None:
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    assert "output: '', no name" in fails(*command, "--output", "")


def test_accuracies_are_printed_and_kept_when_they_cannot_be_written(
    run, model_file: Path, image_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    def fill(path: Path) -> None:
        if path.parent == tmp_path:
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("franca_fast.files.make_durable", fill)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    outcome = run(*command, "--k", 1, "--output", tmp_path / "knn.json")
    (kept,) = home.glob("*/knn.json")
    assert outcome.code == 2
    assert "100.0" in outcome.out
    assert f"Read-only file system: {tmp_path / 'knn.json'}; what" in outcome.err
    assert str(kept) in outcome.err
    assert json.loads(kept.read_text())["accuracy"]["32"]["1"] == 100.0
