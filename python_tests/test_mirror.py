"""The tests mirror the package: `franca_fast/a/b.py` is tested by `python_tests/a/test_b.py`.

Underscores around a module's name are left out, so that `__init__` has test_init.py. A test file of
`python_tests/bench` belongs to a module of `bench` or `bench/gpu` in the same way.
"""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where the tests of a folder stand.
MIRRORED = {"franca_fast": "", "bench": "bench/", "bench/gpu": "bench/"}

# Tests of no module alone, and why.
CROSS_CUTTING = {
    "backends/test_device.py": "every backend of a device by the same cases; also run on a GPU",
    "backends/triton/test_triton.py": "all kernels of Triton, each kind in a pytest of its own",
    "config/test_released_configs.py": "from a configuration to networks, groups and schedules",
    "data/test_mutated_shards.py": "everything that reads shards, on the same damage",
    "ops/test_distributed.py": "operators on ranks, which a GPU's tests of an operator leave out",
    "ops/test_gradients.py": "what the gradients of all operators have in common",
    "test_class_names.py": "classes by name, from what they are kept in to the accuracy of kNN",
    "test_docs.py": "the pages of the manual",
    "test_fake_gpu.py": "the fake GPU of the tests",
    "test_image_accounting.py": "everything that reads images, against one plain reader",
    "test_import_cost.py": "what any import of the package costs",
    "test_import_floors.py": "which file may import which",
    "test_kernel_tables.py": "the tables of the CUDA kernels, outside of the package",
    "test_mirror.py": "this file",
    "training/test_fake_gpu.py": "whole steps where the GPU is a fake",
    "training/test_ranks.py": "whole runs on several ranks, which share their processes",
    "training/test_torchrun.py": "whole runs under torchrun",
}

# Modules without tests of their own, and tests of their callers that fail with them.
THROUGH_CALLERS = {
    "__main__.py": ["cli/test_main.py::test_reader_that_goes_away_is_no_error"],
    # Where there is a GPU.
    "backends/_weight_norm.py": ["ops/test_weight_norm_scores.py::test_any_strides"],
    "backends/cuda/*.py": [
        "backends/test_device.py::test_potentials",
        "backends/test_device.py::test_loss_and_gradient",
        "backends/test_device.py::test_scores",
        "backends/test_device.py::test_weight_norm_scores",
        "backends/test_device.py::test_streamed_loss",
        "ops/test_varlen_attention.py::test_error_is_at_most_twice_that_of_torch",
        "ops/test_adamw_update.py::test_is_as_exact_as_pytorchs_optimizer",
    ],
    "backends/torch/__init__.py": [
        "backends/cpu/test_init.py::test_without_the_core_torch_runs_and_one_warning_says_so"
    ],
    "backends/torch/adamw_update.py": [
        "ops/test_adamw_update.py::test_the_reference_equals_the_definition_in_float64"
    ],
    "backends/torch/clustering_cross_entropy.py": [
        "ops/test_clustering_cross_entropy.py::test_equals_float64"
    ],
    "backends/torch/prototype_scores.py": [
        "ops/test_prototype_scores.py::test_equals_the_definition_forward_and_backward"
    ],
    "backends/torch/sinkhorn.py": ["ops/test_sinkhorn.py::test_equals_float64_for_ragged_heads"],
    "backends/torch/swiglu.py": [
        "ops/test_swiglu.py::test_the_reference_equals_the_equations_in_float64"
    ],
    "backends/torch/weight_norm_scores.py": ["ops/test_weight_norm_scores.py::test_equals_float64"],
    "backends/triton/*.py": [
        "backends/triton/test_triton.py::test_interpreted_kernels",
        "backends/triton/test_triton.py::test_interpreted_kernels_pass_the_tests_of_every_backend",
    ],
    "hub/remote_code/modeling_franca.py": [
        "hub/test_huggingface.py::"
        "test_franca_is_equal_at_its_own_size_and_with_the_code_at_every_size"
    ],
}


def place_of(module: str, prefix: str = "") -> str:
    """Where the tests of a module stand, both relative to their folders."""
    path = Path(module)
    return prefix + path.with_name(f"test_{path.stem.strip('_')}.py").as_posix()


def modules(root: Path, folder: str) -> list[str]:
    """Modules below a folder, without packages that only say what is in them."""
    start = root / folder
    found = (path for path in start.rglob("*.py") if path.stem != "__init__" or _defines(path))
    return sorted(path.relative_to(start).as_posix() for path in found)


def _defines(path: Path) -> bool:
    """Whether a file has functions or classes, or tells the new names of old ones."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)]
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) for node in body) or "__getattr__" in names


def collected(root: Path) -> list[str]:
    """Every file that pytest collects."""
    start = root / "python_tests"
    return sorted(path.relative_to(start).as_posix() for path in start.rglob("test_*.py"))


def misplaced(root: Path) -> list[str]:
    """Test files that belong to no module and are not listed either."""
    # Also packages that define nothing: that they define nothing may be what is tested.
    homes = {
        place_of(path.relative_to(root / folder).as_posix(), prefix)
        for folder, prefix in MIRRORED.items()
        for path in (root / folder).rglob("*.py")
    }
    return [name for name in collected(root) if name not in homes | CROSS_CUTTING.keys()]


def untested(root: Path) -> list[str]:
    """Modules of the package without a test file at their place."""
    there = set(collected(root))
    return [name for name in modules(root, "franca_fast") if place_of(name) not in there]


def test_every_test_file_stands_at_the_place_of_a_module():
    assert misplaced(ROOT) == []


def test_every_module_has_its_test_file_or_a_caller_that_is_tested():
    assert [n for n in untested(ROOT) if not any(fnmatch(n, p) for p in THROUGH_CALLERS)] == []


def test_the_lists_name_only_what_needs_them():
    homes = {place_of(name) for name in modules(ROOT, "franca_fast")}
    assert CROSS_CUTTING.keys() <= set(collected(ROOT)) - homes
    without = untested(ROOT)
    assert [p for p in THROUGH_CALLERS if not any(fnmatch(n, p) for n in without)] == []


@pytest.mark.parametrize("test", sorted(chain(*THROUGH_CALLERS.values())))
def test_tests_of_callers_exist(test):
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / "python_tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        ("python_tests/data/test_planted.py", misplaced),
        ("python_tests/bench/test_planted.py", misplaced),
        ("franca_fast/data/planted.py", untested),
        ("franca_fast/data/_planted.py", untested),
    ],
)
def test_a_planted_file_is_seen(file, wrong, tmp_path):
    for name in ("franca_fast/data/_good.py", "python_tests/data/test_good.py", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [Path(name).name for name in wrong(tmp_path)] == [Path(file).name]


@pytest.mark.parametrize(
    ("text", "needs_tests"),
    [("from a import b\n__all__ = ['b']\n", False), ("def f():\n    pass\n", True)],
)
def test_a_package_needs_tests_when_it_defines_something(text, needs_tests, tmp_path):
    (tmp_path / "franca_fast").mkdir()
    (tmp_path / "franca_fast" / "__init__.py").write_text(text)
    assert untested(tmp_path) == (["__init__.py"] if needs_tests else [])
