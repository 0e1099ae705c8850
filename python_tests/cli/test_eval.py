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
    assert list(result["figures"]) == ["2", "4", "8", "16", "32"]
    assert result["figures"]["32"]["k=1"] == 100.0
    assert "100.0" in outcome.out
    assert result["data"]["test"]["class_names"] == ["a", "b"]
    images = result["data"]["test"]["account"]
    assert images["found"] == images["used"] == len(list(image_folder.rglob("*.png")))
    assert result["encoder"]["model"] == str(model_file)


def test_the_precision_is_said_and_kept(
    run, model_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    outcome = run(*command, "--precision", "bf16", "--output", tmp_path / "knn.json")
    assert "features computed in bf16" in outcome.out
    result = json.loads((tmp_path / "knn.json").read_text())
    assert [result["data"][role]["precision"] for role in ("train", "test")] == ["bf16", "bf16"]


def test_settings_widths_and_markdown(
    run, model_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    options = ["--set", "ks=1", "--set", "temperature=0.1", "--dims", "4,16"]
    outcome = run(*command, *options, "--output", tmp_path / "knn.md")
    assert "settings that differ from the protocol's: ks (1,), temperature 0.1" in outcome.out
    rows = [line.split()[0] for line in outcome.out.splitlines()[2:4]]
    assert rows == ["4", "16"]
    assert "| 16 | 100.0 |" in (tmp_path / "knn.md").read_text()


def test_the_protocols_and_their_settings(run) -> None:
    listed = run("eval", "--list").out
    assert "knn" in listed and "--train --test" in listed and "in-context" in listed
    settings = run("eval", "knn", "any", "--set", "help").out
    assert "temperature" in settings and "0.07" in settings


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--set", "k"], "--set: 'k'; accepted: NAME=VALUE"),
        (["--set", "kk=1"], "setting: 'kk'"),
        (["--dims", "0"], "dims: '0'"),
        (["--dims", "8", "--nested"], "not allowed with"),
        (["--output", "a.csv"], "output: 'a.csv'; accepted: a suffix of .json, .md"),
        (["--query", "absent"], "data of knn: 'query'"),
        (["--features-cache", ""], "features_cache: '' (no name)"),
    ],
)
def test_options_that_are_refused(fails, image_folder: Path, options: list[str], error) -> None:
    command = ["eval", "knn", "absent", "--train", image_folder, "--test", image_folder]
    assert error in fails(*command, *options)


def test_an_unknown_protocol(fails) -> None:
    assert "did you mean 'knn'" in fails("eval", "kn", "absent")


def test_data_that_are_not_there_are_refused_before_the_model_is_loaded(fails) -> None:
    assert "/absent" in fails("eval", "knn", "absent", "--train", "/absent", "--test", "/absent")


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
    assert json.loads(kept.read_text())["figures"]["32"]["k=1"] == 100.0
