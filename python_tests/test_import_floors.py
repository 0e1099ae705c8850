"""The architecture as a test: a file imports only from the floors below its own, and in no circle.

Every import counts, also those inside functions, for types alone, and by name at run time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. What stands on one floor does not know its neighbours.
FLOORS = [
    {"errors", "spelling", "paths", "processor", "cores"},
    {"files"},
    {"backends"},
    {"ops"},
    {"models", "losses", "data"},
    {"hub", "config"},
    {"evaluation"},
    {"training", "rasa"},
    {"planning", "benchmarks"},
    {"cli"},
]
HEIGHT: dict[str | None, int] = {name: i for i, names in enumerate(FLOORS) for name in names}
# Rooms that stand outside: the package's own doors, and the core, which knows no Python.
DOORS = {"__init__", "__main__", "_C"}
# Folders of Python files; scripts beside the package may use it, not the other way round.
FOLDERS = ("franca_fast", "bench", "python_tests")
SCRIPTS = ("cmake", "csrc/tests/emulation")  # whose files import each other from the folder itself

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every Python file of the project by its dotted name."""
    found = {}
    for folder in (*FOLDERS, *SCRIPTS):
        base = root / folder if folder in SCRIPTS else root
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Dotted names that a file imports, in whatever way."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -(node.level - 1) or None] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def graph(root: Path = ROOT) -> Graph:
    """Which of the project's files imports which."""
    files = modules(root)

    def file_of(name: str) -> str | None:
        # A name may be a module, or something within one.
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name or None

    return {
        module: {
            target
            for name in imported_names(path, module)
            # The core is no file of Python, and its name would be taken for the package's.
            if not name.startswith("franca_fast._C") and (target := file_of(name)) is not None
        }
        - {module}
        for module, path in files.items()
    }


def circles(imports: Graph) -> list[list[str]]:
    """Groups of files each of which imports, in the end, itself: Tarjan's components."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(imports[module]):
            if other not in number:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == number[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in imports:
        if module not in number:
            visit(module)
    return found


def room(module: str) -> str | None:
    """The package or file on a floor that a module belongs to; None outside the building."""
    first, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if first == "franca_fast" else None


def allowed(module: str, other: str) -> bool:
    """Whether a file may import another one."""
    own, theirs = room(module), room(other)
    if own is None:  # scripts and tests use the package and each other; tests are for tests
        return module.startswith("python_tests") or not other.startswith("python_tests")
    if own in DOORS:
        return theirs is not None
    if theirs == "__init__":  # through the front door one would be in any room
        return own == "cli"
    return theirs == own or HEIGHT.get(theirs, len(FLOORS)) < HEIGHT[own]


def wrong_imports(imports: Graph) -> list[str]:
    """What no floor allows, in words."""
    return [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in sorted(others)
        if not allowed(module, other)
    ]


def test_every_room_stands_on_a_floor():
    rooms = {room(module) for module in modules(ROOT)} - {None} - DOORS
    assert rooms == set().union(*FLOORS)


def test_imports_point_down():
    assert wrong_imports(graph()) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(graph()) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("ops/planted.py", "from franca_fast.training import pretrain"),
        ("ops/planted.py", "from franca_fast import cli"),
        ("ops/planted.py", "from ..losses.koleo import KoLeoLoss"),
        ("ops/planted.py", "import franca_fast.hub.load as load"),
        ("ops/planted.py", "import franca_fast"),
        ("ops/planted.py", "def late():\n    from franca_fast.models import block"),
        (
            "ops/planted.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from franca_fast import data",
        ),
        ("ops/planted.py", "import importlib\nimportlib.import_module('franca_fast.evaluation')"),
        ("models/planted.py", "from franca_fast.data import Batch"),
        ("training/planted.py", "from franca_fast.rasa.fit import fit"),
        ("errors.py", "from franca_fast.files import write_text"),
        ("backends/planted.py", "from bench import cpu"),
        ("data/planted.py", "from python_tests import helpers"),
    ],
)
def test_a_planted_import_upward_is_seen(file, line, tmp_path):
    _building(tmp_path)
    assert wrong_imports(graph(tmp_path)) == []
    (tmp_path / "franca_fast" / file).write_text(line + "\n")
    assert len(wrong_imports(graph(tmp_path))) == 1


@pytest.mark.parametrize("floor", ["franca_fast/data", "bench", "cmake"])
@pytest.mark.parametrize("lazy", [False, True], ids=["top", "lazy"])
def test_a_planted_circle_is_seen(floor, lazy, tmp_path):
    _building(tmp_path)
    assert circles(graph(tmp_path)) == []
    names = ["first", "second", "third"]
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        package = floor.replace("/", ".")
        line = f"import {other}\n" if floor in SCRIPTS else f"from {package} import {other}\n"
        text = f"def late():\n    {line}" if lazy and name == "third" else line
        (tmp_path / floor / f"{name}.py").write_text(text)
    assert [len(circle) for circle in circles(graph(tmp_path))] == [3]


def _building(root: Path) -> None:
    """The project's folders with the files that the planted lines name, all empty."""
    for name in set().union(*FLOORS) - {"errors", "files"}:
        (root / "franca_fast" / name).mkdir(parents=True)
        (root / "franca_fast" / name / "__init__.py").touch()
    for name in ("__init__", "errors", "files", "losses/koleo", "hub/load", "models/block"):
        (root / "franca_fast" / f"{name}.py").touch()
    (root / "franca_fast" / "rasa" / "fit.py").touch()
    for name in ("bench/cpu", "python_tests/helpers", "cmake/table"):
        (root / name).parent.mkdir()
        (root / f"{name}.py").touch()
