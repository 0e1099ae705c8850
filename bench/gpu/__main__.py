"""One command for a machine with a GPU, no network and little time.

python -m bench.gpu first             build, prove, time, train, profile, test: under 7 minutes
python -m bench.gpu second            what takes longer, on the same machine
python -m bench.gpu --part NAME ...   these parts alone; --list names them
python -m bench.gpu first --device cpu    the same program without a GPU, at tiny sizes

Results are written as they come to rows.jsonl, report.md and logs.zip in --out. A part that
crashes, hangs or is cut costs its own figures only. A folder holds sessions on one device.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu.folder import RefusedError, taken
from bench.gpu.parts import NAMES, ROOT, SECONDS, SESSIONS, Part
from bench.gpu.report import TABLE
from bench.gpu.runner import Session


def chosen(session: str | None, names: list[str]) -> list[list[Part]]:
    """The stages of a session, or those with the parts that are named; their order stays."""
    stages = SESSIONS[session] if session else [s for all_ in SESSIONS.values() for s in all_]
    wanted = [[p for p in stage if not names or p.name in names] for stage in stages]
    return [stage for stage in wanted if stage]


def has_gpu() -> bool:
    """Whether the driver lists a GPU."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


# Where the results go that belong to no other folder; those of a dry run are of no use.
OUT = {"cuda": ROOT / "bench" / "results" / "gpu", "cpu": ROOT / "build" / "gpu" / "dry_run"}


def positive(text: str) -> float:
    """A number of seconds that a session can have."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} was given; a positive finite number is needed")
    return seconds


def main() -> int:
    """Returns 0 when everything went well, 1 when something did not, 2 when nothing can run."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("session", nargs="?", choices=list(SESSIONS))
    parser.add_argument("--part", action="append", default=[], choices=NAMES, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name all parts")
    parser.add_argument(
        "--out", type=Path, help="bench/results/gpu where not given, build/gpu/dry_run for the CPU"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--seconds",
        type=positive,
        help="then everything ends; 420 for the first session, else 560",
    )
    options = parser.parse_args()
    if options.list:
        print("\n".join(NAMES))
        return 0
    stages = chosen(options.session, options.part)
    if not options.session and not options.part:
        parser.error("first, second or --part NAME is needed")
    if missing := set(options.part) - {part.name for stage in stages for part in stage}:
        parser.error(f"{options.session} has no part {', '.join(sorted(missing))}")
    if options.device == "cuda" and not has_gpu():
        print("python -m bench.gpu: nvidia-smi lists no GPU; nothing was built or measured")
        return 2
    seconds = SECONDS.get(options.session, max(SECONDS.values()))
    if options.seconds is not None:
        seconds = options.seconds
    out = (options.out or OUT[options.device]).resolve()
    seconds -= time.monotonic() - began
    try:
        with taken(out, options.device) as scratch:
            well = Session(out, scratch, options.device, seconds).run(stages)
    except RefusedError as error:
        print(f"python -m bench.gpu: {error}")
        return 2
    except OSError as error:
        print(f"python -m bench.gpu: --out {out} cannot be written: {error.strerror or error}")
        return 2
    print((out / TABLE).read_text())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
