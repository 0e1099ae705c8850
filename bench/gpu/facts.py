"""Part: the machine. Card, clocks, driver, compilers, processors."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.gpu import record
from bench.gpu.build import search_path
from bench.gpu.options import parse
from bench.gpu.parts import ROOT

QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.limit,temperature.gpu,clocks_event_reasons.active"
)
TOOLS = (
    "gcc --version",
    "nvcc --version",
    "cmake --version",
    "ninja --version",
    "ncu --version",
    "compute-sanitizer --version",
)


def said(command: str) -> str:
    """What a command prints, on one line."""
    name, *arguments = shlex.split(command)
    program = shutil.which(name, path=search_path())
    if program is None:
        return "not found"
    try:
        result = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return "no answer after 20 s"
    return " ".join((result.stdout + result.stderr).split())[:400]


def commit(root: Path) -> str:
    """The commit that is checked out, "-dirty" when files differ from it."""
    if not (root / ".git").exists():
        return "not known: no repository"
    return said(
        f"git -C {shlex.quote(str(root))} describe --always --dirty --abbrev=40 --exclude=*"
    )


def facts(device: str) -> Iterator[tuple[str, object]]:
    """All facts by name, those that take long last."""
    yield "commit", commit(ROOT)
    yield "python", platform.python_version()
    yield "system", platform.platform()
    yield "processors", os.cpu_count()
    yield "torch", importlib.metadata.version("torch")
    if device == "cuda":
        smi = said(f"nvidia-smi --query-gpu={QUERY} --format=csv,noheader -i 0")
        yield from zip(QUERY.split(","), smi.split(", "), strict=False)
        yield "pcie and clocks", said("nvidia-smi -q -d CLOCK,PERFORMANCE")
    else:
        yield "name", "none: a dry run on the CPU"
    for command in TOOLS:
        yield command, said(command)
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        yield "properties", str(properties)
        yield "capability", f"{properties.major}.{properties.minor}"


def main() -> int:
    """Adds one row for each fact."""
    options = parse(__doc__)
    for name, value in facts(options.device):
        record.add(fact=name, value=value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
