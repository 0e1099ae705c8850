"""Importing the package costs little, and needs no optional package."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = [
    "torchvision",
    "triton",
    "tensorboard",
    "matplotlib",
    "webdataset",
    "omegaconf",
    "pyarrow",
    "kornia",
    "xformers",
    "onnx",
    "onnxruntime",
    "transformers",
]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_loads_nothing_heavy():
    loaded = run("import sys, franca_fast; print(*{m.split('.')[0] for m in sys.modules})").split()
    assert not set(loaded) & set(HEAVY)


def test_everything_imports_without_the_optional_packages():
    optional = {"torchvision", "triton", "tensorboard", "matplotlib", "pyarrow"}
    optional |= {"onnx", "onnxruntime", "onnxscript", "transformers"}
    run(
        f"""
import sys
for name in {optional!r}:
    sys.modules[name] = None  # makes any import of it fail
import franca_fast
for name in franca_fast.__all__:
    getattr(franca_fast, name)
"""
    )


def test_import_is_not_slower_than_that_of_torch():
    def seconds(code: str) -> float:
        """Processor time, which other processes on the machine do not lengthen as wall time."""
        times = []
        for _ in range(3):
            before = os.times()
            run(code)
            after = os.times()
            times.append(after.children_user - before.children_user)
        return min(times)

    assert seconds("import franca_fast, torch") < 1.5 * seconds("import torch")


def test_public_names_exist():
    import franca_fast as ff

    assert set(ff.__all__) <= set(dir(ff))
    assert callable(ff.backends) and callable(ff.use_backend) and callable(ff.load_model)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ff.nothing


def test_loading_a_model_leaves_the_compiler_alone(tmp_path):
    code = f"""
import sys, franca_fast as ff
folder = {str(tmp_path / "model")!r}
sizes = dict(img_size=28, patch_size=14, embed_dim=64, depth=1, num_heads=4)
ff.hub.save_backbone(ff.models.VisionTransformer(**sizes, num_register_tokens=2), folder)
ff.load_model(folder)
print("torch._dynamo" in sys.modules)
"""
    assert run(code).split()[-1] == "False"
