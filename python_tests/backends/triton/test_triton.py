"""The kernels of the Triton backend, interpreted and compiled.

Whether kernels are interpreted is settled when triton is imported, so each kind of test runs in a
pytest of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# The interpreter takes about ten milliseconds for each program.
SLOW_INTERPRETED = (
    "-64]",
    "257",
    "padding_rows",
    "same_bits",
    "every_length",
    "contract",
    "-50]",
    "stays",
)


def run_pytest(*arguments: str, interpret: bool) -> None:
    """Runs pytest in a process of its own and fails with its output."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    if not interpret:
        del environment["TRITON_INTERPRET"]
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "operator",
    [
        "sinkhorn",
        "clustering_cross_entropy",
        "varlen_attention",
        "weight_norm_scores",
        "swiglu",
        "adamw_update",
    ],
)
def test_interpreted_kernels_pass_the_tests_of_every_backend(operator):
    chosen = " and ".join(["triton", *(f"not {name}" for name in SLOW_INTERPRETED)])
    run_pytest(f"python_tests/ops/test_{operator}.py", "-k", chosen, interpret=True)


@pytest.mark.timeout(600)
def test_interpreted_kernels():
    run_pytest("python_tests/backends/triton/interpreted.py", interpret=True)


@pytest.mark.timeout(600)
def test_compiled_kernels():
    run_pytest("python_tests/backends/triton/compiled.py", interpret=False)
