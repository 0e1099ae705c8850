"""Part: the operators' tests on the device, a row for each test as soon as it has run.

python -m bench.gpu.tests -k cuda
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from bench.gpu import record
from bench.gpu.options import parse
from bench.gpu.parts import ROOT

# The tests of ranks are left out: their processes talk over the CPU.
FILES = (
    "python_tests/backends/test_device.py",
    "python_tests/backends/torch/test_streamed_clustering.py",
    "python_tests/ops/test_adamw_update.py",
    "python_tests/ops/test_clustering_cross_entropy.py",
    "python_tests/ops/test_gradients.py",
    "python_tests/ops/test_prototype_scores.py",
    "python_tests/ops/test_sinkhorn.py",
    "python_tests/ops/test_split_rows.py",
    "python_tests/ops/test_swiglu.py",
    "python_tests/ops/test_targets.py",
    "python_tests/ops/test_varlen_attention.py",
)
PROCESSES = 8
# A dry run proves the program, not the operators: the reference alone, in few tests.
DRY_RUN = ("torch and potentials", FILES[:1])


def pytest_runtest_logreport(report: object) -> None:
    """Called by pytest, of which this module is a plugin, in the process that leads the others."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    outcome, when = report.outcome, report.when  # type: ignore[attr-defined]
    if when == "call" or (when == "setup" and outcome != "passed"):
        row = {"test": report.nodeid, "outcome": outcome}  # type: ignore[attr-defined]
        if outcome == "failed":
            row["said"] = report.longreprtext[-1500:]  # type: ignore[attr-defined]
        record.add(**row)


def main() -> int:
    """Returns the status of pytest, which is not 0 when no test was chosen."""
    options = parse(__doc__, k={"default": "", "help": "as pytest's -k"})
    chosen, files = DRY_RUN if options.device == "cpu" else (options.k, FILES)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0"]
    command += ["-p", "bench.gpu.tests", "-p", "no:benchmark"]
    if importlib.util.find_spec("xdist") is not None and options.device == "cuda":
        command += ["-n", str(PROCESSES)]
    command += ["-k", chosen] if chosen else []
    # Not a worker, even where one asks for these tests.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    environment["FRANCA_FAST_TEST_DEVICE"] = options.device
    return subprocess.run([*command, *files], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
