"""One command for a machine with a GPU, no network and little time.

python -m bench.gpu first             build, prove, time, train, profile, test: under 7 minutes
python -m bench.gpu second            what takes longer, on the same machine
python -m bench.gpu --part NAME ...   these parts alone; --list names them
python -m bench.gpu first --device cpu    the same program without a GPU, at tiny sizes

Results are written as they come to rows.jsonl, report.md and logs.zip in --out. A part that
crashes, hangs or is cut costs its own figures only.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from .parts import NAMES, ROOT, SESSIONS, Part
from .runner import Session

SECONDS = 560.0


def chosen(session: str | None, names: list[str]) -> list[list[Part]]:
    """The stages of a session, or those with the parts that are named; their order stays."""
    stages = SESSIONS[session] if session else [s for all_ in SESSIONS.values() for s in all_]
    wanted = [[p for p in stage if not names or p.name in names] for stage in stages]
    return [stage for stage in wanted if stage]


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
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="then everything ends")
    options = parser.parse_args()
    if options.list:
        print("\n".join(NAMES))
        return 0
    if not options.session and not options.part:
        parser.error("first, second or --part NAME is needed")
    if options.device == "cuda" and shutil.which("nvidia-smi") is None:
        print("python -m bench.gpu: no nvidia-smi, so no GPU here; nothing was built or measured")
        return 2
    out = options.out.resolve()
    seconds = options.seconds - (time.monotonic() - began)
    session = Session(out, ROOT / "build" / "gpu", options.device, seconds)
    well = session.run(chosen(options.session, options.part))
    print((out / "report.md").read_text())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
