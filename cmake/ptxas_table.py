"""Runs the CUDA compiler and puts a table in the build log instead of what ptxas says.

One line for each kernel and architecture: registers, bytes of static shared memory, bytes spilled.
Warnings and errors pass unchanged. A kernel that spills registers is slow, and with --no-spills an
error.

Usage: ptxas_table.py [--no-spills] COMPILER ARGUMENTS...
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import NamedTuple

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
CHATTER = re.compile(r"^ptxas info|bytes stack frame|^\s*$")


class Kernel(NamedTuple):
    """Resources of one kernel for one architecture."""

    name: str
    architecture: str
    registers: int
    shared: int
    spilled: int


def readable(symbols: list[str]) -> list[str]:
    """Kernels and template arguments of mangled symbols, which stay as they are without c++filt."""
    if shutil.which("c++filt") is None:
        return symbols
    names = subprocess.run(
        ["c++filt", "-p", *symbols], capture_output=True, text=True, check=True
    ).stdout
    return re.sub(r"franca::cuda::|\(anonymous namespace\)::", "", names).splitlines()


def parse(log: str) -> list[Kernel]:
    """Kernels in the order in which ptxas reports them."""
    kernels, entry, spilled = [], None, 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            entry, spilled = match.groups(), 0
        elif match := SPILLS.search(line):
            spilled = int(match[1]) + int(match[2])
        elif (match := USED.search(line)) and entry is not None:
            shared = SHARED.search(line)
            size = int(shared[1]) if shared else 0
            kernels.append(Kernel(entry[0], entry[1], int(match[1]), size, spilled))
            entry = None
    names = readable([kernel.name for kernel in kernels])
    return [k._replace(name=name) for k, name in zip(kernels, names, strict=True)]


def main() -> int:
    """Returns the exit status of the compiler, or 1 for spills that are not allowed."""
    no_spills = sys.argv[1] == "--no-spills"
    command = sys.argv[2:] if no_spills else sys.argv[1:]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    log = result.stdout + result.stderr
    kernels = parse(log)
    if result.returncode != 0 or not kernels:
        print(log, end="")
        return result.returncode
    print("\n".join(line for line in log.splitlines() if not CHATTER.search(line)))
    print(f"{'kernel':<58} {'arch':<8} {'registers':>9} {'shared':>7} {'spilled':>7}")
    for kernel in sorted(kernels):
        name, architecture, registers, shared, spilled = kernel
        print(f"{name:<58} {architecture:<8} {registers:>9} {shared:>7} {spilled:>7}")
    spilling = [kernel.name for kernel in kernels if kernel.spilled > 0]
    if spilling:
        print(f"{'error' if no_spills else 'warning'}: registers spilled in {', '.join(spilling)}")
    return 1 if spilling and no_spills else 0


if __name__ == "__main__":
    sys.exit(main())
