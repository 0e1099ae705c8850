"""Part: the tests of the compiled kernels under compute-sanitizer, at small sizes.

python -m bench.gpu.sanitizer memcheck
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from bench.gpu import record
from bench.gpu.options import parse
from bench.gpu.parts import ROOT

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def main() -> int:
    """Returns 0 when nothing was found."""
    options = parse(__doc__, tool={"positional": True, "choices": TOOLS})
    if options.device == "cpu" or shutil.which("compute-sanitizer") is None:
        record.add(note="nothing was sanitized: this needs a GPU and compute-sanitizer")
        return 0 if options.device == "cpu" else 1
    command = ["compute-sanitizer", "--tool", options.tool, "--error-exitcode", "9"]
    command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cuda"]
    command += ["-o", "timeout=1200", "python_tests/backends/test_device.py"]
    environment = os.environ | {
        "FRANCA_FAST_TEST_DEVICE": "cuda",
        "FRANCA_FAST_TEST_SIZES": "small",
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # so that each tensor ends where its memory ends
    }
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    record.add(tool=options.tool, status=status)
    return status


if __name__ == "__main__":
    sys.exit(main())
