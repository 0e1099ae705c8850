from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
from PIL import Image


def test_visualize(run, model_file: Path, image_folder: Path, tmp_path: Path) -> None:
    command = ["visualize", "pca", model_file, image_folder, "--output", tmp_path / "pca"]
    outcome = run(*command, "--limit", 3)
    assert outcome.code == 0
    assert len(list((tmp_path / "pca").glob("*.png"))) == 3


@pytest.mark.parametrize(("limit", "said"), [(1, True), (3, True), (1000, False)])
def test_images_beyond_the_limit_are_spoken_of(
    run, model_file: Path, image_folder: Path, tmp_path: Path, limit: int, said: bool
) -> None:
    command = ["visualize", "pca", model_file, image_folder, "--output", tmp_path / "pca"]
    outcome = run(*command, "--limit", limit)
    assert (f"the first {limit} that could be used; --limit N" in outcome.out) == said


def test_visualize_without_matplotlib_fails_before_any_work(
    fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error = fails("visualize", "pca", "absent", "absent", "--output", tmp_path / "pca")
    assert "pip install 'franca-fast[plots]'" in error


def test_the_precision_is_said(run, model_file: Path, image_folder: Path, tmp_path: Path) -> None:
    command = ["visualize", "pca", model_file, image_folder, "--output", tmp_path / "pca"]
    outcome = run(*command, "--limit", 1, "--precision", "bf16")
    assert outcome.out.startswith(f"{tmp_path / 'pca'}: 1 pictures") and "bf16" in outcome.out


def test_truncated_jpeg(fails, model_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:-600])
    command = ["visualize", "pca", model_file, file, "--output", tmp_path / "out.npz"]
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
    assert f"No space left on device: {folder / '000_0.png'}; 0 of 8 pictures" in error
