"""The README's examples run, and the examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import franca_fast as ff

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

# The triton backend needs triton, and its examples run with its own tests.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(ff.__path__, "franca_fast.")
    if not module.name.startswith(("franca_fast.backends.triton", "franca_fast._C"))
    and not module.name.endswith("__main__")
]


@pytest.fixture
def users_folder(tmp_path, monkeypatch):
    """A folder with what the examples name: photos, and a model that a demo exported."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 20, 200)).save(tmp_path / "photos" / f"{i}.png")
    model = ff.models.build_backbone("vit_nano", patch_size=7, img_size=28)
    ff.hub.save_backbone(model, tmp_path / "franca_demo" / "exported" / "teacher")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_readme_example_runs(code, users_folder):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    # Examples show results with torch's default formatting and their own random numbers.
    torch.manual_seed(0)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
