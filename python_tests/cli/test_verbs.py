from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from franca_fast.evaluation import Embeddings


def test_visualize(run, model_file: Path, image_folder: Path, tmp_path: Path) -> None:
    command = ["visualize", "pca", model_file, image_folder, "--output", tmp_path / "pca"]
    outcome = run(*command, "--limit", 3)
    assert outcome.code == 0
    assert len(list((tmp_path / "pca").glob("*.png"))) == 3


def test_visualize_without_matplotlib_fails_before_any_work(
    fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error = fails("visualize", "pca", "absent", "absent", "--output", tmp_path / "pca")
    assert "pip install 'franca-fast[plots]'" in error


def test_doctor(run, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run("doctor").out
    for word in ("torch", "threads", "pyarrow", "sinkhorn", "varlen_attention", "GPU"):
        assert word in out
    monkeypatch.setenv("FRANCA_FAST_BACKEND", "torch")
    lines = [line for line in run("doctor").out.splitlines() if line.startswith("sinkhorn")]
    assert [line.split()[2:4] for line in lines if "*" in line] == [["torch", "*"]]


def test_doctor_shows_which_kernels_are_chosen_on_a_gpu_and_why(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [line.strip() for line in run("doctor").out.splitlines()]
    row = next(i for i, line in enumerate(lines) if line.startswith("9.0  "))
    assert "streamed_clustering on triton" in lines[row]
    assert "9.0 measured on NVIDIA H100" in lines[row + 1]
    own = tmp_path / "own.json"
    own.write_text(
        '{"origin": ["8.6 is ours."], "operators": {"8.6": {"sinkhorn": "torch"}}, '
        '"longest": [], "attention": {}}'
    )
    monkeypatch.setenv("FRANCA_FAST_CHOICES", str(own))
    out = run("doctor").out
    assert "8.6  sinkhorn on torch" in out and "8.6 is ours." in out
    assert "streamed_clustering on triton" not in out
    monkeypatch.setenv("FRANCA_FAST_CHOICES", str(tmp_path / "missing.json"))
    outcome = run("doctor")  # what it could find out stays
    assert outcome.code == 2 and "Operators" in outcome.out
    assert f"FRANCA_FAST_CHOICES: {tmp_path / 'missing.json'}" in outcome.err


def test_pretrain_and_use_of_the_run(
    run, config_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = ["pretrain", "--config-file", config_file, "--output-dir", folder]
    outcome = run(*command, "train.seed=1", "optim.epochs=1")
    assert outcome.code == 0
    assert str(folder / "exported" / "teacher.safetensors") in outcome.out
    output = tmp_path / "f.npz"
    assert run("embed", folder, image_folder, "--output", output).code == 0
    assert Embeddings.load(output).features.shape == (8, 32)


def test_overrides_may_stand_between_options(fails, config_file: Path, tmp_path: Path) -> None:
    error = fails(
        "pretrain", "train.seed=1", "--config-file", config_file, "student.arhc=x", "--output-dir",
        tmp_path / "run", "train.seed=2",
    )  # fmt: skip
    assert "'student.arhc' (did you mean 'student.arch'?" in error


# Wrong input: one line, exit code 2, nothing written.


@pytest.mark.parametrize("verb", ["embed", "visualize"])
def test_truncated_jpeg(fails, model_file: Path, tmp_path: Path, verb: str) -> None:
    from PIL import Image

    file = tmp_path / "a.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:-600])
    verbs = {"embed": ["embed"], "visualize": ["visualize", "pca"]}
    command = [*verbs[verb], model_file, file, "--output", tmp_path / "out.npz"]
    assert "1 damaged image" in fails(*command)


def test_existing_output(fails, model_file: Path, image_folder: Path) -> None:
    command = ["visualize", "pca", model_file, image_folder, "--output", image_folder]
    assert "in use" in fails(*command)


def test_a_full_disk_names_the_picture(
    fails, model_file: Path, image_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    folder = tmp_path / "pca"
    folder.mkdir()
    error = fails("visualize", "pca", model_file, image_folder, "--output", folder)
    assert f"No space left on device: {folder / '000_0.png'}" in error


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.batchsize_per_gpu=4", "did you mean 'train.batch_size_per_gpu'"),
        ("train.dataset_path=/no/where", "no such file or folder"),
        ("train.dataset_path=FashionMINST:split=TRAIN", "did you mean 'FashionMNIST'"),
        ("student.arch=vit_bose", "did you mean 'vit_base'"),
        ("crops.global_crops_size=30", "multiple"),
    ],
)
def test_pretrain_refuses_before_it_writes(
    fails, config_file: Path, tmp_path: Path, override: str, complaint: str
) -> None:
    command = ["pretrain", "--config-file", config_file, "--output-dir", tmp_path / "run"]
    assert complaint in fails(*command, override)


@pytest.mark.parametrize("verb", ["pretrain", "demo"])
def test_output_directory_in_use(
    fails, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("franca_fast.cli.demo._RECIPE", str(config_file))
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("precious")
    options = ["--config-file", config_file] if verb == "pretrain" else []
    assert "chapter.tex" in fails(verb, *options, "--output-dir", folder)


def test_missing_config_file(fails, tmp_path: Path) -> None:
    command = ["pretrain", "--config-file", tmp_path / "no.yaml", "--output-dir", tmp_path / "run"]
    assert "no.yaml" in fails(*command)
