from __future__ import annotations

import errno
from pathlib import Path

import pytest
from PIL import Image

from franca_fast import files
from franca_fast.evaluation import Embeddings


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".safetensors"])
def test_embed(run, model_file: Path, image_folder: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"features{suffix}"
    outcome = run("embed", model_file, image_folder, "--output", output)
    assert (outcome.code, outcome.err) == (0, "")
    assert "8 images, 32 features" in outcome.out
    embeddings = Embeddings.load(output)
    assert embeddings.names[0] == "a/0.png"
    assert embeddings.labels.tolist() == [0] * 4 + [1] * 4


def test_embed_names_what_it_skipped(
    run, model_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "a" / "0.png").write_text("no image")
    outcome = run("embed", model_file, image_folder, "--output", tmp_path / "f.npz")
    assert outcome.code == 0
    assert "7 images" in outcome.out and "skipped 1: not an image" in outcome.out
    assert outcome.err.startswith("warning: skipped") and "0.png" in outcome.err


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_precision_is_said_and_kept(
    run, model_file: Path, image_folder: Path, tmp_path: Path, precision: str
) -> None:
    command = ["embed", model_file, image_folder, "--output", tmp_path / "f.npz"]
    outcome = run(*command, "--precision", precision)
    assert f"computed in {precision}" in outcome.out
    assert Embeddings.load(tmp_path / "f.npz").facts["precision"] == precision


def test_a_precision_that_does_not_exist_is_refused_before_the_model_is_loaded(
    fails, tmp_path: Path
) -> None:
    command = ["embed", "absent", "absent", "--output", tmp_path / "f.npz"]
    assert "argument --precision: invalid choice: 'fp16'" in fails(*command, "--precision", "fp16")


def test_missing_path(fails, model_file: Path, tmp_path: Path) -> None:
    command = ["embed", model_file, tmp_path / "nowhere", "--output", tmp_path / "f.npz"]
    assert "no such file or folder" in fails(*command)


def test_empty_folder(fails, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = ["embed", model_file, tmp_path / "empty", "--output", tmp_path / "f.npz"]
    assert "no images in" in fails(*command)


def test_non_image_files(fails, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("text")
    command = ["embed", model_file, tmp_path / "notes", "--output", tmp_path / "f.npz"]
    assert "no images in" in fails(*command)
    (tmp_path / "notes" / "a.png").write_text("text")
    assert "no readable image" in fails(*command)


def test_image_size_that_is_no_multiple_of_the_patch(
    fails, model_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    command = ["embed", model_file, image_folder, "--output", tmp_path / "f.npz"]
    assert "patch size 14, the nearest are 98 and 112" in fails(*command, "--img-size", 100)


def test_unknown_model(fails, image_folder: Path, tmp_path: Path) -> None:
    command = ["embed", "vit_bose", image_folder, "--output", tmp_path / "f.npz"]
    assert "model: unknown 'vit_bose' (did you mean 'vit_base'?" in fails(*command)


def test_malicious_weights(fails, image_folder: Path, tmp_path: Path) -> None:
    import pickle

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Runs(), protocol=2))
    command = ["embed", tmp_path / "w.pth", image_folder, "--output", tmp_path / "f.npz"]
    assert "w.pth" in fails(*command)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--num-workers", "-3", "argument --num-workers: -3; accepted: 0 or more"),
        ("--batch-size", "0", "argument --batch-size: 0; accepted: 1 or more"),
    ],
)
def test_embed_names_the_option_that_is_wrong(
    fails, model_file: Path, image_folder: Path, tmp_path: Path, option: str, value: str, complaint
) -> None:
    command = ["embed", model_file, image_folder, "--output", tmp_path / "f.npz"]
    assert complaint in fails(*command, option, value)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".safetensors"])
def test_a_full_disk_names_the_features_file(
    fails, model_file: Path, image_folder: Path, tmp_path: Path, monkeypatch, suffix: str
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for writer in ("numpy.savez", "pyarrow.parquet.write_table", "safetensors.torch.save_file"):
        monkeypatch.setattr(writer, full)
    output = tmp_path / f"f{suffix}"
    error = fails("embed", model_file, image_folder, "--output", output)
    assert f"No space left on device: {output}; what was computed is lost" in error


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".safetensors"])
def test_features_that_cannot_be_written_in_the_end_are_kept(
    run, model_file: Path, image_folder: Path, tmp_path: Path, monkeypatch, suffix: str
) -> None:
    def fill(path: Path) -> None:
        if path.parent == tmp_path:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        make_durable(path)

    make_durable = files.make_durable
    monkeypatch.setattr(files, "make_durable", fill)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    output = tmp_path / f"f{suffix}"
    outcome = run("embed", model_file, image_folder, "--output", output)
    (kept,) = home.glob(f"*/f{suffix}")
    line = f"Disk quota exceeded: {output}; what was computed is kept as '{kept}'"
    assert (outcome.code, outcome.err) == (2, f"franca-fast: error: {line}\n")
    assert len(Embeddings.load(kept)) == 8
    assert not output.exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_unknown_device(
    fails, model_file: Path, image_folder: Path, tmp_path: Path, device: str
) -> None:
    command = ["embed", model_file, image_folder, "--output", tmp_path / "f.npz"]
    assert f"--device: '{device}'" in fails(*command, "--device", device)


def test_existing_output(fails, model_file: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_text("precious")
    command = ["embed", model_file, image_folder, "--output", tmp_path / "f.npz"]
    assert "exists" in fails(*command)


def test_truncated_jpeg(fails, model_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:-600])
    command = ["embed", model_file, file, "--output", tmp_path / "out.npz"]
    assert "1 damaged image" in fails(*command)
