"""Holds one turn of the main loops of sm_90a kernels against what was aimed at.

sass_turns.py [OBJECT ...]     of those in build/native; status 1 when a goal is missed

A turn is the shortest way from a loop's first wanted instruction back to it on which exactly the
wanted ones lie: that of a whole step, where nothing is cut at an edge and no product ends.
"""

from __future__ import annotations

import heapq
import re
import sys
from pathlib import Path
from typing import NamedTuple

from ptxas_table import readable
from sass_table import OBJECTS, ROOT, Instruction, basic_blocks, disassembled, functions, tools


class Goal(NamedTuple):
    """What a turn of a kernel's loop may need.

    Attributes:
        kernel: Its name, a regular expression.
        wanted: How many instructions of a turn begin with a word.
        units: What a thread, or of matrices a warp, does in a turn.
        unit: The name of that.
        before: Instructions for a unit in version 0.1.
        most: At most so many.
    """

    kernel: str
    wanted: dict[str, int]
    units: int
    unit: str
    before: float
    most: float


STEP = {"HMMA": 64, "LDGSTS": 4}
GOALS = (
    Goal(r"scores_kernel<BFloat16, ByWarps>", STEP, 1, "64-deep step", 770, 320),
    Goal(r"streamed_(rows|columns)_kernel<BFloat16, ByWarps.*", STEP, 1, "64-deep step", 770, 320),
    Goal(
        r"row_mass_kernel<BFloat16.*",
        {"MUFU.EX2": 32, "LDGSTS": 4, "STAS": 1, "MEMBAR": 0},
        *(32, "element", 21.6, 15),
    ),
    Goal(r"clustering_forward_kernel<BFloat16, BFloat16, 1>", {"MUFU.EX2": 68}, 32, "pair", 33, 22),
)


def turn(code: list[Instruction], wanted: dict[str, int]) -> int | None:
    """Instructions of a turn; None when there is no such loop."""
    words, goal = tuple(wanted), tuple(wanted.values())
    blocks, after = basic_blocks(code)
    found = [tuple(sum(code[i].opcode.startswith(w) for i in b) for w in words) for b in blocks]
    sizes = [sum(code[i].root != "NOP" for i in block) for block in blocks]
    start = next((i for i, counts in enumerate(found) if counts[0]), None)
    if start is None:
        return None
    waiting, seen = [(sizes[start], start, found[start])], set()
    while waiting:
        length, block, counts = heapq.heappop(waiting)
        for following in after[block]:
            if following == start and counts == goal:
                return length
            more = tuple(map(sum, zip(counts, found[following], strict=True)))
            state = (following, more)
            if following != start and state not in seen and all(map(int.__le__, more, goal)):
                seen.add(state)
                heapq.heappush(waiting, (length + sizes[following], *state))
    return None


def main() -> int:
    """Returns 1 when a goal is missed or nothing of that name is there."""
    objects = [Path(name) for name in sys.argv[1:]] or sorted(ROOT.glob(OBJECTS))
    folder = tools(None)
    kernels = [
        (symbol, code)
        for file in objects
        for architecture, symbol, _, code in functions(disassembled(folder, file))
        if architecture == "sm_90a"
    ]
    names = readable([symbol for symbol, _ in kernels])
    missed = False
    print(f"{'kernel':<58} {'a turn':>7} {'each':>6} {'before':>7} {'goal':>5}")
    for goal in GOALS:
        matching = [i for i, name in enumerate(names) if re.fullmatch(goal.kernel, name)]
        missed |= not matching
        for i in matching:
            length = turn(kernels[i][1], goal.wanted)
            each = float("nan") if length is None else length / goal.units
            missed |= not each <= goal.most
            print(
                f"{names[i]:<58} {length or '-':>7} {each:>6.1f} {goal.before:>7} {goal.most:>5}"
                f"  {goal.unit}"
            )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
