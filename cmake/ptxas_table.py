"""Runs the CUDA compiler and puts a table in the build log instead of what ptxas says.

One line for each kernel and architecture: registers, bytes of static shared memory, bytes of local
memory, where spilled registers go and arrays that are indexed at run time. Warnings and errors pass
unchanged. With --strict a kernel that uses local memory is an error, and one in which ptxas makes
products of warpgroups wait for each other: other compilers than the one in use here may do either.

Usage: ptxas_table.py [--strict] COMPILER ARGUMENTS...
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import NamedTuple

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
LOCAL = re.compile(r"(\d+) bytes stack frame")
SERIALISED = re.compile(r"wgmma.*serialized")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
CHATTER = re.compile(r"^ptxas info|bytes stack frame|^\s*$")


class Kernel(NamedTuple):
    """Resources of one kernel for one architecture."""

    name: str
    architecture: str
    registers: int
    shared: int
    local: int


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
    kernels, entry, local = [], None, 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            entry, local = match.groups(), 0
        elif match := LOCAL.search(line):
            local = int(match[1])
        elif (match := USED.search(line)) and entry is not None:
            shared = SHARED.search(line)
            size = int(shared[1]) if shared else 0
            kernels.append(Kernel(entry[0], entry[1], int(match[1]), size, local))
            entry = None
    names = readable([kernel.name for kernel in kernels])
    return [k._replace(name=name) for k, name in zip(kernels, names, strict=True)]


def main() -> int:
    """Returns the exit status of the compiler, or 1 for what --strict does not allow."""
    strict = sys.argv[1:2] == ["--strict"]
    command = sys.argv[2:] if strict else sys.argv[1:]
    if not command:
        print((__doc__ or "").strip().splitlines()[-1], file=sys.stderr)
        return 2
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    log = result.stdout + result.stderr
    kernels = parse(log)
    if result.returncode != 0 or not kernels:
        print(log, end="")
        if result.returncode == 0 and strict:
            print("error: nothing is known of the kernels; -Xptxas=-v makes the compiler tell")
        return result.returncode or int(strict)
    print("\n".join(line for line in log.splitlines() if not CHATTER.search(line)))
    print(f"{'kernel':<58} {'arch':<8} {'registers':>9} {'shared':>7} {'local':>7}")
    for kernel in sorted(kernels):
        name, architecture, registers, shared, local = kernel
        print(f"{name:<58} {architecture:<8} {registers:>9} {shared:>7} {local:>7}")
    errors = [f"{kernel.name} uses local memory" for kernel in kernels if kernel.local > 0]
    errors += [line for line in log.splitlines() if SERIALISED.search(line)]
    for error in errors:
        print(f"{'error' if strict else 'warning'}: {error}")
    return 1 if errors and strict else 0


if __name__ == "__main__":
    sys.exit(main())
