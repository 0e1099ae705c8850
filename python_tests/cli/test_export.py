from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from franca_fast.hub import convert, load_model

GOLDEN = Path(__file__).parents[1] / "golden"

# Exporters take seconds of processor time, which is minutes on a busy machine.
pytestmark = pytest.mark.timeout(600)


def test_safetensors_and_huggingface(run, model_file: Path, tmp_path: Path) -> None:
    original = load_model(model_file)
    for kind, name in (("safetensors", "out.safetensors"), ("huggingface", "folder")):
        path = tmp_path / name
        outcome = run("export", model_file, "--format", kind, "--output", path)
        assert (outcome.code, outcome.out) == (0, f"{path}\n")
        images = torch.rand(1, 3, 28, 28)
        assert torch.allclose(load_model(path)(images), original(images), atol=1e-6)


def test_huggingface_at_another_size(run, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    run("export", model_file, "--format", "huggingface", "--output", path, "--img-size", 56)
    assert json.loads((path / "config.json").read_text())["image_size"] == 56


def test_programs(run, model_file: Path, tmp_path: Path) -> None:
    command = ["export", model_file, "--img-size", "14x28"]
    onnx = tmp_path / "m.onnx"
    assert run(*command, "--format", "onnx", "--output", onnx).out == f"{onnx}\n"
    program = tmp_path / "m.pt2"
    options = ["--format", "torch-export", "--batch-size", 2]
    assert run(*command, *options, "--output", program).out == f"{program}\n"
    images = torch.rand(2, 3, 14, 28)
    given = torch.export.load(program).module()(images)["cls_token"]
    assert torch.allclose(given, load_model(model_file)(images), atol=1e-5)


def test_rasa_file_is_folded_in(run, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    convert(GOLDEN / "teacher_checkpoint.pth", model, architecture={"num_heads": 4})
    rasa = GOLDEN / "rasa.pth"
    images = torch.rand(2, 3, 98, 98)
    raw = load_model(model).forward_features(images)["x_norm_patchtokens"]
    cleaned = load_model(model, rasa=rasa).forward_features(images)["x_norm_patchtokens"]
    command = ["export", model, "--rasa", rasa, "--format"]
    run(*command, "matrix", "--output", tmp_path / "matrix.safetensors")
    matrix = load_file(tmp_path / "matrix.safetensors")["matrix"]
    assert torch.allclose(raw @ matrix.T, cleaned, atol=1e-5)
    run(*command, "torch-export", "--output", tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    assert torch.allclose(program(images)["patch_tokens"], cleaned, atol=1e-5)
    run(*command, "safetensors", "--output", tmp_path / "clean.safetensors")
    again = load_model(tmp_path / "clean.safetensors")
    assert torch.allclose(again.forward_features(images)["x_norm_patchtokens"], cleaned, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--format", "onnx", "--output", "m.onnx", "--img-size", "30"], "multiples of the patch"),
        (["--format", "onnx", "--output", "m.onnx", "--img-size", "1x2x3"], "HEIGHTxWIDTH"),
        (["--format", "onnx", "--output", "m.onnx", "--img-size", "0x14"], "accepted: 1 or more"),
        (["--format", "onnx", "--output", "m.pt2"], "ends in .onnx"),
        (["--format", "huggingface", "--output", "x", "--img-size", "14x28"], "for squares"),
        (["--format", "huggingface", "--output", "x", "--batch-size", "2"], "is for onnx"),
        (["--format", "safetensors", "--output", "x", "--img-size", "28"], "--img-size is for"),
        (
            ["--format", "matrix", "--output", "x.safetensors"],
            "accepted: one loaded with a RASA file",
        ),
        (["--format", "matrix", "--output", "x.npy"], "ends in .safetensors"),
        (["--format", "onnx", "--output", "m.onnx", "--rasa", "nothing.pth"], "no such file"),
        (["--format", "onxx", "--output", "x"], "onxx"),
    ],
)
def test_what_is_refused(fails, model_file: Path, words: list[str], complaint: str) -> None:
    assert complaint in fails("export", model_file, *words)
