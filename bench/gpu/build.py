"""Part: builds the compiled core for the card at hand, into the source tree.

CMake is called as setup.py calls it, but keeps its folder: a second session on the same machine
builds only what changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.gpu import record
from bench.gpu.options import parse
from bench.gpu.parts import ROOT

FOLDER = ROOT / "build" / "gpu" / "cmake"


def capability() -> str:
    """Architecture of the first card, as CMake names it."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0"]
    answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return answer.replace(".", "") + ("a" if answer == "9.0" else "") + "-real"


def search_path() -> str:
    """PATH, and where tools are that it does not name: in this Python's environment, in CUDA's."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    more = [str(Path(sys.executable).parent), str(home / "bin")]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *more])


def main() -> int:
    """Returns the status of the first command that failed, or 0."""
    options = parse(__doc__, arch={"help": "instead of that of the card, such as 90a-real"})
    if options.device == "cpu" and not options.arch:
        record.add(note="nothing is built for a dry run")
        return 0
    import pybind11

    environment = os.environ | {"PATH": search_path()}
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "FRANCA_FAST_PYTHON": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "FRANCA_FAST_CUDA": "on",
        "FRANCA_FAST_CUDA_ARCHS": options.arch or capability(),
    }
    commands = [
        ["cmake", "-S", ".", "-B", str(FOLDER), "-G", "Ninja"]
        + [f"-D{name}={value}" for name, value in settings.items()],
        ["cmake", "--build", str(FOLDER), "--parallel"],
        ["cmake", "--install", str(FOLDER), "--prefix", "franca_fast", "--component", "python"],
    ]
    for command in commands:
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
