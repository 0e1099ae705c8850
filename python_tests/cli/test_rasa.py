from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from franca_fast.hub import load_model
from franca_fast.rasa import PositionProjector, ProjectedBackbone

SHARD = "FashionMNIST:split=TEST"  # 1,000 images; the model sees 2 x 2 patches of each
QUICK = ("--readout", "covariance", "--num-workers", "0")


@pytest.fixture
def projector_file(tmp_path: Path) -> Path:
    PositionProjector(torch.randn(2, 2, 32)).save(tmp_path / "rasa.safetensors")
    return tmp_path / "rasa.safetensors"


def test_fit_writes_a_projector_and_says_what_it_read(run, model_file, tmp_path):
    output = tmp_path / "new" / "rasa.safetensors"
    outcome = run("rasa", "fit", model_file, SHARD, "--output", output, *QUICK)
    assert outcome.code == 0
    assert "chance is 0.2500" in outcome.out
    assert "2 of 32 directions" in outcome.out
    projector = PositionProjector.from_files(output)
    assert (projector.rank, projector.compatible) == (2, False)
    assert [file.name for file in output.parent.iterdir()] == ["rasa.safetensors"]


def test_options_of_fit_reach_it(run, model_file, tmp_path):
    output = tmp_path / "rasa.pth"
    options = ("--iterations", "2", "--epochs", "3", "--readout", "linear", "--crops", "center")
    more = ("--compatible", "--batch-size", "250", "--seed", "3", "--cache-gb", "0")
    outcome = run("rasa", "fit", model_file, SHARD, "--output", output, *options, *more)
    assert outcome.code == 0
    assert "4 of 32 directions" in outcome.out
    assert "may be left" in outcome.out
    assert len(torch.load(output, weights_only=True)) == 2


def test_report_writes_figures_and_a_picture(run, model_file, projector_file, tmp_path):
    folder = tmp_path / "report"
    words = ("rasa", "report", model_file, SHARD, "--projector", projector_file)
    outcome = run(*words, "--output", folder, "--num-workers", "0")
    assert outcome.code == 0
    assert "500 held-out images" in outcome.out
    content = json.loads((folder / "report.json").read_text())
    assert [step["directions"] for step in content["steps"]] == [0, 2, 4]
    assert Image.open(folder / "positions.png").height > 4 * 115
    assert outcome.out.endswith("report: report.json, positions.png\n")


def test_report_without_matplotlib_leaves_the_picture_out(
    run, model_file, projector_file, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ("rasa", "report", model_file, SHARD, "--projector", projector_file)
    outcome = run(*words, "--output", tmp_path / "report", "--num-workers", "0")
    assert outcome.code == 0
    assert outcome.err.startswith("warning: pictures need matplotlib")
    assert "pip install 'franca-fast[plots]'" in outcome.err
    assert outcome.out.endswith("report: report.json\n")
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["report.json"]


@pytest.mark.parametrize("compatible", [(), ("--compatible",)])
def test_applied_projector_is_part_of_the_model(
    run, model_file, projector_file, tmp_path, compatible
):
    folder = tmp_path / "clean"
    words = ("rasa", "apply", model_file, "--projector", projector_file)
    assert run(*words, "--output", folder, *compatible).code == 0
    clean = load_model(folder)
    assert isinstance(clean, ProjectedBackbone)
    projector = PositionProjector.from_files(projector_file, compatible=bool(compatible))
    image = torch.randn(1, 3, 28, 28)
    expected = projector.apply(load_model(model_file).forward_features(image)["x_norm_patchtokens"])
    tokens = clean.forward_features(image)["x_norm_patchtokens"]
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-6)


def test_features_can_be_computed_without_positions(
    run, model_file, projector_file, image_folder, tmp_path
):
    from franca_fast.evaluation import Embeddings

    for name, more in (("raw", ()), ("clean", ("--rasa", projector_file))):
        words = (
            "embed",
            model_file,
            image_folder,
            "--pooling",
            "patch_mean",
            "--precision",
            "fp32",
        )
        assert run(*words, *more, "--output", tmp_path / f"{name}.npz").code == 0
    raw, clean = (Embeddings.load(tmp_path / f"{name}.npz") for name in ("raw", "clean"))
    expected = PositionProjector.from_files(projector_file).apply(raw.features)
    torch.testing.assert_close(clean.features, expected, rtol=0, atol=1e-5)


def test_wrong_files_end_in_one_line(fails, model_file, projector_file, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no file")
    torch.save({"pos_pred.weight": torch.randn(2, 8)}, tmp_path / "narrow.pth")
    apply = ("rasa", "apply", model_file, "--output", tmp_path / "out", "--projector")
    assert "damaged" in fails(*apply, tmp_path / "bad.safetensors")
    assert "no such file" in fails(*apply, tmp_path / "none.pth")
    assert "width 8" in fails(*apply, tmp_path / "narrow.pth")
    report = ("rasa", "report", model_file, SHARD, "--output", tmp_path / "out", "--projector")
    assert "width 8" in fails(*report, tmp_path / "narrow.pth")
    assert "in use" in fails(
        "rasa", "apply", model_file, "--output", tmp_path, "--projector", projector_file
    )


def test_wrong_words_end_in_one_line(fails, model_file, image_folder, tmp_path):
    fit = ("rasa", "fit", model_file, image_folder, "--output", tmp_path / "r.safetensors")
    assert "did you mean 'sigmoid'" in fails(*fit, "--readout", "sigmod")
    assert "did you mean 'center'" in fails(*fit, "--crops", "centre")
    assert "did you mean '--readout'" in fails(*fit, "--readuot", "linear")
    assert "at least 320 patches" in fails(*fit)
    assert "suffix" in fails("rasa", "fit", model_file, SHARD, "--output", tmp_path / "r.npz")
    assert "no such" in fails("rasa", "fit", tmp_path / "none.pth", SHARD, *fit[4:])


def test_interrupted_fit_leaves_nothing_half_written(model_file, tmp_path):
    words = ("rasa", "fit", str(model_file), SHARD, "--output", str(tmp_path / "r.safetensors"))
    many = ("--iterations", "12", "--epochs", "400", "--num-workers", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "franca_fast", *words, *many],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell starts what runs in the background with interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    partial = tmp_path / "r.safetensors.partial.safetensors"
    deadline = time.monotonic() + 90
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "franca-fast: interrupted"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", partial.name]
    assert PositionProjector.from_files(partial).rank >= 2


def test_results_that_cannot_be_written_in_the_end_are_kept(
    run, model_file, projector_file, tmp_path, monkeypatch
):
    def fill(path: Path) -> None:
        if path.is_relative_to(tmp_path / "out"):
            raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("franca_fast.files.make_durable", fill)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    output = tmp_path / "out" / "r.safetensors"
    outcome = run("rasa", "fit", model_file, SHARD, "--output", output, *QUICK)
    assert outcome.code == 2
    assert f"Stale file handle: {output}; what was computed is kept as" in outcome.err
    (kept,) = home.glob("*/r.safetensors")
    assert PositionProjector.from_files(kept).rank == 2
    folder = tmp_path / "out" / "report"
    words = ("rasa", "report", model_file, SHARD, "--projector", projector_file)
    outcome = run(*words, "--output", folder, "--num-workers", "0")
    assert outcome.code == 2
    assert "500 held-out images" in outcome.out
    assert f"Stale file handle: {folder / 'report.json'}; what" in outcome.err
    assert len([*home.glob("*/report/report.json"), *home.glob("*/report/positions.png")]) == 2
