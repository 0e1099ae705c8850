"""Part: the machine. Card, clocks, driver, compilers, processors."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

from . import record
from .options import parse

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
    words = command.split()
    if shutil.which(words[0]) is None:
        return "not found"
    result = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    return " ".join((result.stdout + result.stderr).split())[:400]


def main() -> int:
    """Adds one row for each fact."""
    options = parse(__doc__)
    facts = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        **{command: said(command) for command in TOOLS},
    }
    if options.device == "cuda":
        smi = said(f"nvidia-smi --query-gpu={QUERY} --format=csv,noheader -i 0")
        facts |= dict(zip(QUERY.split(","), smi.split(", "), strict=False))
        facts["pcie and clocks"] = said("nvidia-smi -q -d CLOCK,PERFORMANCE")
    else:
        facts["name"] = "none: a dry run on the CPU"
    for name, value in facts.items():
        record.add(fact=name, value=value)
    import torch

    record.add(fact="torch", value=torch.__version__)
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        record.add(fact="properties", value=str(properties))
        record.add(fact="capability", value=f"{properties.major}.{properties.minor}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
