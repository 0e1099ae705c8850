from __future__ import annotations

from pathlib import Path

import pytest

from franca_fast.evaluation import Embeddings


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


def test_output_directory_in_use(fails, config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("precious")
    command = ["pretrain", "--config-file", config_file, "--output-dir", folder]
    assert "chapter.tex" in fails(*command)


def test_missing_config_file(fails, tmp_path: Path) -> None:
    command = ["pretrain", "--config-file", tmp_path / "no.yaml", "--output-dir", tmp_path / "run"]
    assert "no.yaml" in fails(*command)
