"""Part: times the variants of all works, in a process that is replaced when it crashes or hangs.

python -m bench.gpu.timings --device cuda [--only WORK] [--variant NAME ...] [--warm]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.gpu import record

STALL = 45.0  # seconds without a new row after which a process is taken to hang


def measure_all(command: list[str], folder: Path, stall: float = STALL) -> bool:
    """Runs `command` until it ends well, each time without what was begun before.

    Returns:
        Whether every variant was measured.
    """
    part, well = record.part_name(), True
    while True:
        begun, _ = _begun(part, folder)
        skips = [f"--skip={case}::{variant}" for case, variant in begun]
        process = subprocess.Popen([*command, *skips])
        status = _wait(process, folder, stall)
        if status == 0:
            return well
        well = False
        why = f"no row for {stall:.0f} s" if status is None else f"ended with status {status}"
        now_begun, unfinished = _begun(part, folder)
        for case, variant in unfinished:
            record.append(folder, {"part": part, "case": case, "variant": variant, "error": why})
        if not unfinished:
            record.append(folder, {"part": part, "error": why})
        if len(now_begun) == len(begun):  # it did not come so far as to begin anything
            return False


Named = tuple[str, str]  # a work and a variant


def _begun(part: str, folder: Path) -> tuple[list[Named], list[Named]]:
    """What was begun, and what of it has neither a result nor an error."""
    begun: dict[Named, bool] = {}
    for row in record.read(folder):
        if row["part"] == part and "case" in row:
            begun[row["case"], row["variant"]] = row.get("state") == "begun"
    return list(begun), [name for name, unfinished in begun.items() if unfinished]


def _wait(process: subprocess.Popen[bytes], folder: Path, stall: float) -> int | None:
    """Status of a process, or None when it was killed because it made no progress."""
    path = folder / record.ROWS
    size, since = -1, time.monotonic()
    while (status := process.poll()) is None:
        now = path.stat().st_size if path.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        if time.monotonic() - since > stall:
            process.kill()
            process.wait()
            return None
        time.sleep(0.1)
    return status


def main() -> int:
    """Returns 0 when everything was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="works whose name contains this")
    parser.add_argument("--variant", action="append", default=[], help="these only; all otherwise")
    parser.add_argument("--warm", action="store_true", help="call each once and time nothing")
    options = parser.parse_args()
    if options.warm and options.device == "cpu":
        record.add(note="nothing is compiled in a dry run")
        return 0
    folder = Path(os.environ.get(record.FOLDER) or tempfile.mkdtemp(prefix="timings-"))
    os.environ[record.FOLDER] = str(folder)
    command = [sys.executable, "-m", "bench.gpu.measure", "--device", options.device]
    command += ["--only", options.only, *(["--warm"] if options.warm else [])]
    command += [f"--variant={name}" for name in options.variant]
    return 0 if measure_all(command, folder) else 1


if __name__ == "__main__":
    sys.exit(main())
