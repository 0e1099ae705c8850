"""Counts the instructions of the compiled CUDA kernels, and holds them against limits.

sass_table.py [OBJECT ...]                  the table of the hot kernels, --all of all kernels
sass_table.py --check [OBJECT ...]          and status 1 when a limit is broken
sass_table.py --write-limits [OBJECT ...]   and new limits: what is there now, and 3 per cent

Objects are those of build/native unless they are named; --check and --write-limits need all. The
limits, and what is a hot kernel, stand in csrc/cuda/sass_limits.json. cuobjdump and nvdisasm are
taken from beside nvcc, or from Triton; c++filt names the kernels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ptxas_table import readable

ROOT = Path(__file__).resolve().parents[1]
LIMITS = ROOT / "csrc" / "cuda" / "sass_limits.json"
OBJECTS = "build/native/CMakeFiles/franca_cuda.dir/csrc/cuda/*.o"
MARGIN = 1.03
REGISTERS = 8  # are given to a warp by so many
ADVICE = (
    "If this is meant: cmake --build build/native && python cmake/sass_table.py --write-limits, "
    f"and commit {LIMITS.relative_to(ROOT)} with the reason."
)

ARCHITECTURE = re.compile(r"^arch = (\w+)")
FUNCTION = re.compile(r"^\s*Function\s?:? (\w[\w$.]*?):?$")
USED = re.compile(r"\bREG:(\d+)")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?([A-Z][\w.]*)([^;]*);")
TARGET = re.compile(r"(0x[0-9a-f]+)\s*$")
WIDTH = re.compile(r"\.[US]?(8|16|64|128|256)\b")

# Instructions that are counted, by the words before the first dot. MMA of any kind is "matrix".
KINDS = {
    "mufu": {"MUFU"},
    "async_copies": {"LDGSTS", "UBLKCP", "UTMALDG"},
    "shared_loads": {"LDS"},
    "matrix_loads": {"LDSM"},
    "shared_stores": {"STS", "STSM", "STAS"},
    "barriers": {"BAR", "UCGABAR_ARV", "UCGABAR_WAIT", "SYNCS"},
    "membar": {"MEMBAR"},
    "errbar": {"ERRBAR"},
    "cctl": {"CCTL"},
    "local": {"LDL", "STL"},
}
ENDS = {"EXIT", "RET", "KILL", "BRX", "JMX", "JMP"}

# How each count is held: at most, exactly, at least so many.
AT_MOST = ("instructions", "loops", "registers", "membar", "local")
EXACTLY = ("matrix",)
AT_LEAST = ("loop_work",)
# These have one right value whatever the compiler; the others are those of one compiler.
ANY_COMPILER = ("membar", "local")

Counts = dict[str, Any]  # "loops" has several, every other one number
Kernels = dict[tuple[str, str], Counts]  # by architecture and name


class Instruction(NamedTuple):
    """One line of SASS."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def root(self) -> str:
        """The opcode without what modifies it."""
        return self.opcode.partition(".")[0]


def functions(listing: str) -> Iterator[tuple[str, str, int, list[Instruction]]]:
    """Architecture, symbol, registers and code of each kernel in what cuobjdump prints."""
    architecture, symbol, registers = "", "", Counter[tuple[str, str]]()
    code: list[Instruction] = []
    for line in listing.splitlines():
        if line.startswith("      ") and ";" not in line:
            continue  # the second half of an instruction's code: every other line
        if match := INSTRUCTION.match(line):
            address, predicate, opcode, operands = match.groups()
            code.append(Instruction(int(address, 16), predicate or "", opcode, operands))
        elif match := FUNCTION.match(line) or ARCHITECTURE.match(line):
            if code:
                yield architecture, symbol, registers[architecture, symbol], code
                code = []
            if match.re is ARCHITECTURE:
                architecture = match[1]
            else:
                symbol = match[1]
        elif match := USED.search(line):
            registers[architecture, symbol] = int(match[1])
    if code:
        yield architecture, symbol, registers[architecture, symbol], code


def basic_blocks(code: list[Instruction]) -> tuple[list[range], list[list[int]]]:
    """Basic blocks, and the blocks that may follow each of them."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    follow: dict[int, list[int]] = {}  # of instructions that may go on elsewhere
    for i, instruction in enumerate(code):
        if instruction.root in ENDS:
            follow[i] = [i + 1] if instruction.predicate else []
        elif instruction.root == "BRA":
            target = TARGET.search(instruction.operands)
            conditional = instruction.predicate or "," in instruction.operands
            follow[i] = [i + 1] if conditional or not target else []
            # .DIV leads to the way that diverged warps take, which is none of the loop's.
            if target and ".DIV" not in instruction.opcode and int(target[1], 16) in place:
                follow[i].append(place[int(target[1], 16)])
    starts = {0} | {i + 1 for i in follow} | {i for targets in follow.values() for i in targets}
    ordered = sorted(i for i in starts if i < len(code))
    blocks = [range(a, b) for a, b in zip(ordered, [*ordered[1:], len(code)], strict=True)]
    number = {block.start: i for i, block in enumerate(blocks)}
    after = [
        [number[i] for i in follow.get(block[-1], [block.stop]) if i in number] for block in blocks
    ]
    return blocks, after


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The instructions of each natural loop."""
    blocks, after = basic_blocks(code)
    before: list[list[int]] = [[] for _ in blocks]
    back: list[tuple[int, int]] = []  # branches to a block on the way to them
    on_the_way, seen, path = {0}, {0}, [(0, iter(after[0]))]
    while path:
        block, rest = path[-1]
        following = next(rest, None)
        if following is None:
            on_the_way.discard(block)
            path.pop()
            continue
        before[following].append(block)
        if following in on_the_way:
            back.append((block, following))
        elif following not in seen:
            seen.add(following)
            on_the_way.add(following)
            path.append((following, iter(after[following])))
    bodies: dict[int, set[int]] = {}
    for end, head in back:
        body, waiting = bodies.setdefault(head, {head}), [end]
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting += before[block]
    return [[code[i] for b in sorted(body) for i in blocks[b]] for body in bodies.values()]


def _is_matrix(root: str) -> bool:
    return root.endswith("MMA")


def hot_loops(code: list[Instruction]) -> tuple[list[int], int]:
    """Sizes of the loops where the work is done, inner ones first, and the work of the first.

    Work is matrix instructions, or else MUFU; a loop counts with half as many as any other has.
    """
    for wanted in (_is_matrix, lambda root: root == "MUFU"):
        sizes = [(len(body), sum(wanted(i.root) for i in body)) for body in loops(code)]
        most = max((work for _, work in sizes), default=0)
        if most:
            full = sorted((size, work) for size, work in sizes if 2 * work >= most)
            return [size for size, _ in full], full[0][1]
    return [], 0


def count(code: list[Instruction], registers: int) -> Counts:
    """All counts of one kernel."""
    code = [instruction for instruction in code if instruction.root != "NOP"]
    roots = Counter(instruction.root for instruction in code)
    found: Counts = {"registers": registers, "instructions": len(code)}
    found["loops"], found["loop_work"] = hot_loops(code)
    found["matrix"] = sum(n for root, n in roots.items() if _is_matrix(root))
    found |= {kind: sum(roots[root] for root in members) for kind, members in KINDS.items()}
    for kind, root in (("loads", "LDG"), ("stores", "STG")):
        for instruction in code:
            if instruction.root == root:
                match = WIDTH.search(instruction.opcode)
                bits = max(16, int(match[1])) if match else 32
                found[f"{kind}_{bits}"] = found.get(f"{kind}_{bits}", 0) + 1
    return found


def tools(nvcc: str | None) -> Path:
    """The folder of cuobjdump and nvdisasm, which it calls."""
    found = [shutil.which("cuobjdump"), nvcc and shutil.which(nvcc)]
    folders = [Path(path).resolve().parent for path in found if path]
    folders += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for folder in folders:
        if all(shutil.which(name, path=folder) for name in ("cuobjdump", "nvdisasm")):
            return folder
    raise SystemExit(f"no cuobjdump with nvdisasm in {', '.join(map(str, folders))}")


def disassembled(folder: Path, file: Path) -> str:
    """What cuobjdump prints of an object file; ValueError when that has no device code."""
    command = [str(folder / "cuobjdump"), "--dump-resource-usage", "--dump-sass", str(file)]
    environment = os.environ | {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ValueError(f"{file}: {(result.stderr + result.stdout).strip()}")
    return result.stdout


def _counted(job: tuple[Path, Path]) -> list[tuple[str, str, Counts]]:
    return [
        (architecture, symbol, count(code, registers))
        for architecture, symbol, registers, code in functions(disassembled(*job))
    ]


def count_all(files: Iterable[Path], folder: Path) -> Kernels:
    """The counts of all kernels in object files, the largest files first."""
    jobs = [(folder, file) for file in sorted(files, key=lambda file: -file.stat().st_size)]
    with ProcessPoolExecutor() as pool:
        found = [kernel for kernels in pool.map(_counted, jobs) for kernel in kernels]
    names = readable([symbol for _, symbol, _ in found])
    return {
        (architecture, name): counts
        for (architecture, _, counts), name in zip(found, names, strict=True)
    }


def table(kernels: Kernels) -> str:
    """One line for each kernel; loads and stores of device memory by their bits."""
    head = {
        "registers": "regs",
        "instructions": "instr",
        "loops": "in loops, from inside",
        "loop_work": "work",
        "matrix": "mma",
        "mufu": "mufu",
        "loads": "ldg 128/64/32/16",
        "async_copies": "ldgsts",
        "stores": "stg 128/64/32/16",
        "shared_loads": "lds",
        "matrix_loads": "ldsm",
        "shared_stores": "sts",
        "barriers": "bar",
        "membar": "membar",
        "errbar": "errbar",
        "cctl": "cctl",
        "local": "local",
    }

    def cell(counts: Counts, name: str) -> str:
        if name == "loops":
            return " ".join(map(str, counts[name]))
        if name not in ("loads", "stores"):
            return str(counts[name])
        widths = [counts.get(f"{name}_{bits}", 0) for bits in (128, 64, 32, 16)]
        widths[0] += counts.get(f"{name}_256", 0)
        return "/".join(map(str, widths))

    def line(kernel: str, architecture: str, cells: list[str]) -> str:
        padded = [
            c.rjust(max(5, len(title))) for c, title in zip(cells, head.values(), strict=True)
        ]
        return f"{kernel:<58} {architecture:<8} {' '.join(padded)}"

    lines = [line("kernel", "arch", list(head.values()))]
    for (architecture, name), counts in sorted(kernels.items(), key=lambda item: item[0][::-1]):
        lines.append(line(name, architecture, [cell(counts, column) for column in head]))
    return "\n".join(lines)


def hot(kernels: Kernels, patterns: list[str]) -> Kernels:
    """The kernels whose whole name is one of some regular expressions."""
    whole = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return {key: counts for key, counts in kernels.items() if whole.fullmatch(key[1])}


def limits_of(counts: Counts) -> Counts:
    """Limits that a kernel keeps, with a margin where the compiler may choose."""
    limits = {name: counts[name] for name in (*AT_MOST, *EXACTLY, *AT_LEAST)}
    limits["instructions"] = math.ceil(MARGIN * counts["instructions"])
    limits["loops"] = [math.ceil(MARGIN * size) for size in counts["loops"]]
    limits["registers"] = math.ceil(counts["registers"] / REGISTERS) * REGISTERS
    return limits


def exceeded(counts: Counts, limits: Counts, names: Iterable[str]) -> Iterator[str]:
    """What of a kernel breaks its limits."""
    for name in names:
        value, limit = counts[name], limits[name]
        if name == "loops" and len(value) != len(limit):
            yield f"{len(value)} hot loops of {value} instructions, there were {len(limit)}"
        elif name == "loops" and any(n > most for n, most in zip(value, limit, strict=True)):
            yield f"loops of {value} instructions, the limit is {limit}"
        elif (name in AT_MOST and value > limit) or (name in EXACTLY and value != limit):
            yield f"{name}: {value}, the limit is {limit}"
        elif name in AT_LEAST and value < limit:
            yield f"{name}: {value}, at least {limit} are expected"


def broken(kernels: Kernels, file: dict[str, Any], compiler: str) -> list[str]:
    """What is wrong: limits that are broken, kernels without a limit, limits without a kernel."""
    held = {(arch, name) for arch, names in file["limits"].items() for name in names}
    missing, new = held - set(kernels), set(hot(kernels, file["hot"])) - held
    wrong = [f"{arch} {name}: there is no such kernel" for arch, name in sorted(missing)]
    wrong += [f"{arch} {name}: a hot kernel without limits" for arch, name in sorted(new)]
    wrong += [f"{name}: no kernel is called so" for name in file["hot"] if not hot(kernels, [name])]
    for (arch, name), counts in sorted(kernels.items()):
        limits = file["limits"].get(arch, {}).get(name, {"local": 0})
        names = [n for n in limits if compiler == file["compiler"] or n in ANY_COMPILER]
        wrong += [f"{arch} {name}: {what}" for what in exceeded(counts, limits, names)]
    return wrong


def write_limits(path: Path, kernels: Kernels, compiler: str) -> None:
    """Writes limits of the hot kernels that a file names; a line for each kernel.

    ValueError when one of its names is no kernel's: then not all are here.
    """
    file = json.loads(path.read_text())
    missing = [name for name in file["hot"] if not hot(kernels, [name])]
    if missing:
        raise ValueError(f"no limits were written: no kernel is called {', '.join(missing)}")
    limits: dict[str, list[str]] = {}
    for (arch, name), counts in sorted(hot(kernels, file["hot"]).items()):
        line = f"      {json.dumps(name)}: {json.dumps(limits_of(counts))}"
        limits.setdefault(arch, []).append(line)
    rows = {arch: ",\n".join(lines) for arch, lines in limits.items()}
    whole = ",\n".join(f"    {json.dumps(arch)}: {{\n{text}\n    }}" for arch, text in rows.items())
    head = json.dumps({"compiler": compiler, "hot": file["hot"]}, indent=2)
    path.write_text(f'{head[:-2]},\n  "limits": {{\n{whole}\n  }}\n}}\n')


def version(nvcc: str | None) -> str:
    """Major and minor version of the compiler."""
    found = shutil.which(nvcc) if nvcc else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if found is None:
        raise ValueError(f"--nvcc {nvcc}: there is no such compiler")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", said)
    return match[1] if match else "unknown"


def main() -> int:
    """Returns 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("objects", nargs="*", type=Path)
    parser.add_argument("--all", action="store_true", help="show all kernels, not only hot ones")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-limits", action="store_true")
    parser.add_argument("--limits", type=Path, default=LIMITS)
    parser.add_argument("--nvcc", help="the compiler that made the objects; otherwise that of PATH")
    options = parser.parse_args()
    objects = options.objects or sorted(ROOT.glob(OBJECTS))
    if not objects:
        parser.error(f"no object files: none was named, and none is in {OBJECTS}")
    if missing := [str(path) for path in objects if not path.is_file()]:
        parser.error(f"no such object file: {', '.join(missing)}")
    if shutil.which("c++filt") is None:
        parser.error("c++filt, which names the kernels, is not in PATH")
    try:
        compiler = version(options.nvcc)
        kernels = count_all(objects, tools(options.nvcc))
        if options.write_limits:
            write_limits(options.limits, kernels, compiler)
        file = json.loads(options.limits.read_text())
    except (ValueError, OSError) as error:  # no device code, for instance
        parser.error(str(error))
    print(table(kernels if options.all else hot(kernels, file["hot"])))
    if not options.check:
        return 0
    if compiler != file["compiler"]:
        print(f"\nThe limits are those of nvcc {file['compiler']}, and this is {compiler}: only")
        print(f"these are held: {', '.join(ANY_COMPILER)}.")
    wrong = broken(kernels, file, compiler)
    if wrong:
        print("\n" + "\n".join(f"error: {line}" for line in wrong) + f"\n{ADVICE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
