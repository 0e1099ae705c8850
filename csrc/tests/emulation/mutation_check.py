"""Proves that the emulated tests notice defects: plants them one by one and expects a red test.

All defects of a kernel source are compiled into one copy of it, each behind a switch that an
environment variable sets, so that one compilation serves them all.

Usage: mutation_check.py TEST --source csrc --compiler g++ --objects a.o b.a ...
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutations import BY_TEST, Mutation

SWITCH = """#pragma once
#include <cstdlib>
// Whether this defect is switched on.
inline bool franca_mutant(int number) {
  static const int active = [] {
    const char* text = std::getenv("FRANCA_MUTANT");
    return text != nullptr ? std::atoi(text) : 0;
  }();
  return active == number;
}
"""
FLAGS = ["-std=c++17", "-O1", "-w", "-U_FORTIFY_SOURCE", "-DFRANCA_EMULATION"]
SECONDS = 300.0  # a defect that hangs; a busy machine must not look like one


def plant(text: str, mutation: Mutation, number: int) -> str:
    """The text with the defect behind its switch."""
    anchor = text.find(mutation.after)
    start = text.find(mutation.original, anchor) if anchor >= 0 else -1
    if start < 0:
        raise SystemExit(f"mutation not found in {mutation.file}: {mutation.original!r}")
    choice = f"(franca_mutant({number}) ? ({mutation.mutant}) : ({mutation.original}))"
    if mutation.original.endswith(";"):
        choice = (
            f"if (franca_mutant({number})) {{ {mutation.mutant} }} else {{ {mutation.original} }}"
        )
    return text[:start] + choice + text[start + len(mutation.original) :]


def build(arguments: argparse.Namespace, folder: Path) -> Path:
    """Compiles the copy with all defects and links it with the test."""
    sources, mutations = BY_TEST[arguments.test]
    shutil.copytree(arguments.source / "cuda", folder / "cuda")
    (folder / "switch.hpp").write_text(SWITCH)
    for number, mutation in enumerate(mutations, start=1):
        path = folder / "cuda" / mutation.file
        path.write_text(plant(path.read_text(), mutation, number))
    program = folder / "mutants"
    command = [arguments.compiler, *FLAGS, "-include", str(folder / "switch.hpp")]
    command += [f"-I{folder}", f"-I{arguments.source}", f"-I{arguments.source / 'include'}"]
    command += ["-x", "c++", *(str(folder / "cuda" / source) for source in sources), "-x", "none"]
    subprocess.run([*command, *arguments.objects, "-o", str(program)], check=True)
    return program


def survives(program: Path, number: int) -> bool:
    """Whether the test stays green with defect `number`; 0 is none."""
    environment = os.environ | {"FRANCA_MUTANT": str(number)}
    try:
        result = subprocess.run(
            [str(program)], env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0


def main() -> int:
    """Returns 0 when every defect turns the test red and the test is green without one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("test", choices=sorted(BY_TEST))
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--objects", nargs="+", required=True)
    arguments = parser.parse_args()
    mutations = BY_TEST[arguments.test][1]
    with tempfile.TemporaryDirectory() as name:
        program = build(arguments, Path(name))
        numbers = range(len(mutations) + 1)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            green = list(pool.map(lambda number: survives(program, number), numbers))
    if not green[0]:
        print("the test is red without any defect")
        return 1
    survivors = [m for m, alive in zip(mutations, green[1:], strict=True) if alive]
    for mutation in survivors:
        print(f"not noticed in {mutation.file}: {mutation.mutant!r} for {mutation.original!r}")
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} planted defects noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
