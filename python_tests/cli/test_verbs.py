from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest

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


def test_knn(run, model_file: Path, image_folder: Path, tmp_path: Path) -> None:
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    outcome = run(*command, "--k", 1, 3, "--nested", "--output", tmp_path / "knn.json")
    assert outcome.code == 0
    accuracies = json.loads((tmp_path / "knn.json").read_text())
    assert list(accuracies) == ["2", "4", "8", "16", "32"]
    assert accuracies["32"]["1"] == 100.0
    assert "100.0" in outcome.out


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


def test_models(run) -> None:
    out = run("models").out
    assert "franca_vitl14" in out and "vit_7b" in out and "RAIL" in out


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


def test_missing_path(fails, model_file: Path, tmp_path: Path) -> None:
    command = ["embed", model_file, tmp_path / "nowhere", "--output", tmp_path / "f.npz"]
    assert "no such file or folder" in fails(*command)


def test_empty_folder(fails, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = ["embed", model_file, tmp_path / "empty", "--output", tmp_path / "f.npz"]
    assert "no images in folder" in fails(*command)


def test_non_image_files(fails, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("text")
    command = ["embed", model_file, tmp_path / "notes", "--output", tmp_path / "f.npz"]
    assert "no images in folder" in fails(*command)
    (tmp_path / "notes" / "a.png").write_text("text")
    assert "no readable image" in fails(*command)


@pytest.mark.parametrize("verb", ["embed", "visualize"])
def test_truncated_jpeg(fails, model_file: Path, tmp_path: Path, verb: str) -> None:
    from PIL import Image

    file = tmp_path / "a.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:-600])
    verbs = {"embed": ["embed"], "visualize": ["visualize", "pca"]}
    command = [*verbs[verb], model_file, file, "--output", tmp_path / "out.npz"]
    assert "1 damaged image" in fails(*command)


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


def test_existing_output(fails, model_file: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_text("precious")
    command = ["embed", model_file, image_folder, "--output", tmp_path / "f.npz"]
    assert "exists" in fails(*command)
    command = ["visualize", "pca", model_file, image_folder, "--output", image_folder]
    assert "in use" in fails(*command)
    command = ["eval", "knn", model_file, "--train", image_folder, "--test", image_folder]
    assert "exists" in fails(*command, "--output", tmp_path / "f.npz")


def test_knn_without_labels(fails, model_file: Path, image_folder: Path) -> None:
    images = image_folder / "a"
    command = ["eval", "knn", model_file, "--train", images, "--test", images]
    assert "without a label" in fails(*command)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--num-workers", "-3", "argument --num-workers: -3 is below 0"),
        ("--batch-size", "0", "argument --batch-size: 0 is not positive"),
    ],
)
def test_embed_names_the_option_that_is_wrong(
    fails, model_file: Path, image_folder: Path, tmp_path: Path, option: str, value: str, complaint
) -> None:
    command = ["embed", model_file, image_folder, "--output", tmp_path / "f.npz"]
    assert complaint in fails(*command, option, value)


@pytest.mark.parametrize("temperature", ["0", "-1", "nan", "inf"])
def test_knn_checks_the_temperature_before_it_reads_anything(fails, temperature: str) -> None:
    command = ["eval", "knn", "absent", "--train", "absent", "--test", "absent"]
    assert "--temperature" in fails(*command, "--temperature", temperature)


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
    assert f"No space left on device: {output}" in error


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


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_unknown_device(
    fails, model_file: Path, image_folder: Path, tmp_path: Path, device: str
) -> None:
    command = ["embed", model_file, image_folder, "--output", tmp_path / "f.npz"]
    assert f"--device: '{device}' is not" in fails(*command, "--device", device)


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
