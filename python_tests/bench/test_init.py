"""The files of the benchmarks on a GPU."""

from __future__ import annotations

import ast
from pathlib import Path

import bench.gpu

FOLDER = Path(bench.gpu.__file__).parent


def test_no_file_imports_itself_over_others():
    """Also not inside functions."""
    imports = {}
    for path in FOLDER.glob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        own = [n for n in nodes if n.level == 1]
        imports[path.stem] = {n.module for n in own if n.module} | {
            alias.name for n in own if not n.module for alias in n.names
        }
    while free := {name for name, needed in imports.items() if not needed & set(imports)}:
        imports = {name: needed for name, needed in imports.items() if name not in free}
    assert not imports
