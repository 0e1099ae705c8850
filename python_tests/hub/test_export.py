"""Exported programs, compared with the model in their own runtimes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from franca_fast.errors import FrancaError, InputError
from franca_fast.hub import export as module
from franca_fast.hub import (
    export_huggingface,
    export_matrix,
    export_onnx,
    export_safetensors,
    export_torch,
)
from franca_fast.models import VisionTransformer
from python_tests.hub.test_huggingface import build, without_positions

# The exporters alone take seconds of processor time, which is minutes on a busy machine.
pytestmark = pytest.mark.timeout(600)

SMALLEST = {"img_size": 28, "embed_dim": 16, "depth": 1, "num_heads": 2}
SIZES = [(518, 518), (224, 224), (140, 224)]
TOLERANCE = 1e-4


def features(model: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        out = model.forward_features(images)
    return {"cls_token": out["x_norm_clstoken"], "patch_tokens": out["x_norm_patchtokens"]}


def run_onnx(file: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = session.run(names, {session.get_inputs()[0].name: images.numpy()})
    return {name: torch.from_numpy(a) for name, a in zip(names, arrays, strict=True)}


def run_torch(file: Path, images: Tensor) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(file).module()(images)


def assert_describes(facts: dict[str, Any], size: tuple[int, int]) -> None:
    """What a file says on how its images are prepared."""
    assert (facts["height"], facts["width"], facts["patch_size"]) == (*size, 14)
    assert facts["image_mean"] == [0.485, 0.456, 0.406]
    assert facts["positions_removed"] is False


def assert_equal(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert given[name].shape == tensor.shape
        assert (given[name] - tensor).abs().max().item() < TOLERANCE, name


@pytest.mark.parametrize(
    ("export", "suffix"),
    [(export_onnx, b".onnx"), (export_torch, b".pt2"), (export_safetensors, b".safetensors")],
)
def test_a_path_that_is_not_utf_8_is_written(tmp_path: Path, export: Any, suffix: bytes) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\x93\xfa" + suffix)
    file.parent.mkdir()
    export(build(**SMALLEST), file)
    plain = tmp_path / f"plain{os.fsdecode(suffix)}"
    shutil.copy(file, plain)
    if suffix == b".safetensors":
        assert load_file(plain)
    else:
        images = torch.zeros(2, 3, 28, 28)
        run = run_onnx if suffix == b".onnx" else run_torch
        assert run(plain, images)["cls_token"].shape == (2, 16)


@pytest.mark.parametrize("size", SIZES)
def test_onnx_equals_the_model_with_any_batch(tmp_path: Path, size: tuple[int, int]) -> None:
    model = build(num_register_tokens=2, depth=1)
    file = export_onnx(model, tmp_path / "m.onnx", img_size=size)
    for n_images in (1, 3):
        images = torch.randn(n_images, 3, *size)
        assert_equal(run_onnx(file, images), features(model, images))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert_describes(
        {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}, size
    )


@pytest.mark.parametrize("size", SIZES)
def test_torch_export_equals_the_model_with_any_batch(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    model = build(depth=1)
    file = export_torch(model, tmp_path / "m.pt2", img_size=size)
    for n_images in (1, 3):
        images = torch.randn(n_images, 3, *size)
        assert_equal(run_torch(file, images), features(model, images))
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("franca_fast.json"))
        assert_describes(json.loads(archive.read(name)), size)


@pytest.mark.parametrize(
    ("export", "run", "name"),
    [(export_onnx, run_onnx, "m.onnx"), (export_torch, run_torch, "m.pt2")],
)
def test_fixed_batch_of_one_without_positions(
    tmp_path: Path, export: Any, run: Any, name: str
) -> None:
    model = without_positions(ffn_layer="mlp", **SMALLEST)
    file = export(model, tmp_path / name, batch_size=1)
    images = torch.randn(1, 3, 28, 28)
    assert_equal(run(file, images), features(model, images))
    with pytest.raises(Exception, match=r"(?i)expected|guard failed"):
        run(file, torch.randn(2, 3, 28, 28))


def test_program_needs_no_operator_of_ours(tmp_path: Path) -> None:
    program = torch.export.load(export_torch(build(**SMALLEST), tmp_path / "m.pt2"))
    operators = {node.target for node in program.graph.nodes if node.op == "call_function"}
    names = {op.namespace for op in operators if isinstance(op, torch._ops.OpOverload)}
    assert names == {"aten"}


def test_weights_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INLINE_LIMIT", 100)
    model = build(**SMALLEST)
    file = export_onnx(model, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    images = torch.randn(2, 3, 28, 28)
    assert_equal(run_onnx(file, images), features(model, images))


def test_export_changes_nothing_in_the_model() -> None:
    model = build(**SMALLEST).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    module.ImageFeatures(model, (14, 42))
    assert model.training and model.cls_token.requires_grad
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.position_embedding(28, 28) is model.pos_embed


@pytest.mark.parametrize(("export", "name"), [(export_onnx, "m.onnx"), (export_torch, "m.pt2")])
def test_wrong_outputs_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any, name: str
) -> None:
    (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(module, "_TOLERANCE", -1.0)
    with pytest.raises(FrancaError, match=r"was not written: its cls_token would differ"):
        export(build(**SMALLEST), tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"path": "m.txt"}, r"ends in \.onnx"),
        ({"path": "there.onnx"}, "exists"),
        ({"img_size": 30}, "multiples of the patch size 14"),
        ({"img_size": (28, 0)}, "28 x 0"),
        ({"batch_size": 0}, "1 or more, or None"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], complaint: str) -> None:
    (tmp_path / "there.onnx").touch()
    path = tmp_path / arguments.pop("path", "m.onnx")
    with pytest.raises(InputError, match=complaint):
        export_onnx(build(**SMALLEST), path, **arguments)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("export", "name"),
    [
        (export_safetensors, "m.safetensors"),
        (export_huggingface, "m"),
        (export_onnx, "m.onnx"),
        (export_torch, "m.pt2"),
    ],
)
def test_a_disk_without_room_for_the_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any, name: str
) -> None:
    model = build(**SMALLEST)
    free = 4 * sum(parameter.numel() for parameter in model.parameters()) - 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: (10**9, 0, free))
    with pytest.raises(InputError, match=rf"{name}', \d+ bytes where {free} are free"):
        export(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("export", "name", "beside"),
    [
        (export_safetensors, "m.safetensors", "m.json"),
        (export_onnx, "m.onnx", "m.onnx.data"),
        (export_huggingface, "m", "m/config.json"),
    ],
)
def test_what_is_written_beside_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any, name: str, beside: str
) -> None:
    monkeypatch.setattr(module, "_INLINE_LIMIT", 100)
    (tmp_path / beside).mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{beside}', a folder; accepted: a file"):
        export(build(**SMALLEST), tmp_path / name, overwrite=True)


@pytest.mark.parametrize(
    ("export", "name"),
    [(export_safetensors, "m.safetensors"), (export_onnx, "m.onnx"), (export_torch, "m.pt2")],
)
def test_names_of_250_bytes(tmp_path: Path, export: Any, name: str) -> None:
    stem, suffix = name.split(".")
    path = tmp_path / f"{stem * (249 - len(suffix))}.{suffix}"
    assert export(build(**SMALLEST), path) == path
    assert path.is_file()


def test_a_disk_that_fills_up_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    code = """
import resource, sys
from franca_fast.hub import export_onnx, export_torch
from franca_fast.models import VisionTransformer
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
model = VisionTransformer(img_size=28, embed_dim=16, depth=1, num_heads=2)
for export, path in zip((export_onnx, export_torch), sys.argv[1:], strict=True):
    try:
        export(model, path)
    except OSError as error:
        print(error.errno, error.filename)
"""
    paths = [str(tmp_path / name) for name in ("m.onnx", "m.pt2")]
    command = [sys.executable, "-W", "ignore", "-c", code, *paths]
    outcome = subprocess.run(command, capture_output=True, text=True)
    expected = "".join(f"{errno.EFBIG} {path}\n" for path in paths)
    assert outcome.stdout == expected, outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"franca-fast\[export\]"):
        export_onnx(build(**SMALLEST), tmp_path / "m.onnx")


def test_matrix(tmp_path: Path) -> None:
    model = without_positions(**SMALLEST)
    matrix = load_file(export_matrix(model, tmp_path / "m.safetensors"))["matrix"]
    tokens = torch.randn(5, 16)
    assert torch.allclose(tokens @ matrix.T, model.rasa(tokens), atol=1e-5)
    with pytest.raises(InputError, match="removes no positions"):
        export_matrix(build(**SMALLEST), tmp_path / "n.safetensors")
