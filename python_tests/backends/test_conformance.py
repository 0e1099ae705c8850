"""mypy holds every module of every backend to the protocol of its operator."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import franca_fast
from franca_fast.backends.contracts import BACKENDS, OPERATORS

FOLDER = Path(franca_fast.__file__).parent / "backends"
# PyTorch's types take mypy half a minute, and numbers and names of arguments do without them.
SETTINGS = "[mypy]\nfollow_imports = silent\n[mypy-torch.*]\nfollow_imports = skip\n"

PLANTED = {
    "sinkhorn": ("n_valid: int, with_mass: bool", "n_valid: int"),
    "clustering_cross_entropy": ("def backward(", "def backwards("),
}


def listed() -> dict[str, set[str]]:
    """The modules that conformance.py compares with the protocol of each operator."""
    tree = ast.parse((FOLDER / "conformance.py").read_text())
    names = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    return {
        node.target.id: {names[entry.id] for entry in node.value.elts}
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
    }


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_module_is_compared(operator):
    offered = {
        f"franca_fast.backends.{backend}.{operator}"
        for backend in BACKENDS
        if (FOLDER / backend / f"{operator}.py").exists()
    }
    assert listed()[operator] == offered


def test_nothing_imports_the_comparison():
    sources = [path for path in FOLDER.parent.rglob("*.py") if path.name != "conformance.py"]
    assert not [path for path in sources if "conformance import" in path.read_text()]


def mypy(folder: Path) -> str:
    """What mypy says of the comparison in a copy of the package."""
    (folder / "mypy.ini").write_text(SETTINGS)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "franca_fast/backends/conformance.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    ).stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of what the comparison imports, which mypy has found to be right."""
    folder = tmp_path_factory.mktemp("package")
    for path in [*FOLDER.rglob("*.py"), FOLDER.parent / "__init__.py", FOLDER.parent / "errors.py"]:
        copy = folder / "franca_fast" / path.relative_to(FOLDER.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    said = mypy(folder)
    assert "Success" in said, said
    return folder


@pytest.mark.parametrize("operator", PLANTED)
def test_a_module_with_another_signature_is_found(package, operator):
    path = package / "franca_fast" / "backends" / "torch" / f"{operator}.py"
    right = path.read_text()
    before, after = PLANTED[operator]
    assert before in right
    path.write_text(right.replace(before, after))
    try:
        assert f"conformance.py:{line_of(package, operator)}: error: List item 2" in mypy(package)
    finally:
        path.write_text(right)


def line_of(package: Path, operator: str) -> int:
    """Where the torch module of an operator is compared."""
    tree = ast.parse((package / "franca_fast/backends/conformance.py").read_text())
    names = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    return next(node.value.elts[2].lineno for node in names if node.target.id == operator)
