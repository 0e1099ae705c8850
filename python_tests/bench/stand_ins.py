"""Parts that take the place of real ones, and a session of them in a process of its own.

python -m python_tests.bench.stand_ins OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.gpu.folder import taken
from bench.gpu.parts import Part
from bench.gpu.runner import Session

# Says who it is, and goes on when a file "go NAME" appears in the folder of the session.
WAITS = """
import os, pathlib, time
from bench.gpu import record
name = record.part_name()
record.add(pid=os.getpid())
print("said by", name, flush=True)
while not pathlib.Path(os.environ[record.FOLDER], f"go {name}").exists():
    time.sleep(0.02)
record.add(figure=1)
"""


class StandIn(Part):
    """A part whose module is the code that it runs."""

    def command(self, device: str) -> list[str]:
        return [sys.executable, "-c", self.module]


STAGES = [
    [StandIn("one", 60, WAITS), StandIn("two", 60, WAITS)],
    [StandIn("three", 60, WAITS)],
    [StandIn("four", 60, WAITS)],
]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    with taken(out, "cpu") as scratch:
        sys.exit(0 if Session(out, scratch, "cpu", 60).run(STAGES) else 1)
