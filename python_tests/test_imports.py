"""The architecture as a test: imports point one way, and importing the package costs little."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "franca_fast"

# A package imports only from lower layers and from its own; errors and files are below everything.
LAYERS = [
    {"errors", "files"},
    {"backends"},
    {"ops"},
    {"models", "losses", "data", "config"},
    {"training", "rasa", "evaluation", "hub", "benchmarks"},
    {"planning"},
    {"cli"},
]
# Within one layer: what a package may not know of.
FORBIDDEN = {"models": {"data", "losses"}, "losses": {"data", "models"}, "data": {"models"}}

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


def layer(package: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if package in names)


def franca_imports(path: Path) -> set[str]:
    """Sub-packages of franca_fast that a file imports, at its top or inside functions."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(parts[: len(parts) - node.level]) if node.level else []
            stem = ".".join(base + ([node.module] if node.module else []))
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("franca_fast.")}
    return {
        name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    }


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    package = path.relative_to(PACKAGE).parts[0]
    imported = franca_imports(path) - {package}
    above = {name for name in imported if layer(name) > layer(package)}
    assert not above, f"{package} imports from above: {above}"
    assert not imported & FORBIDDEN.get(package, set())


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
