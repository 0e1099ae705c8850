"""Reads many mutated shards, each indexed, checked and trained on for two epochs.

python -m python_tests.long.fuzz_shards --count 1000

Shards are read in child processes, 50 in each, so that a crash, a hang or a leak is seen for what
it is. Exit code 1 when anything went wrong; the result is written to bench/results/fuzz/.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import PIL

from franca_fast.files import write_json
from python_tests.data.mutations import mutated, read_all_ways, tree

_PER_PROCESS = 50
_SECONDS = 60  # for one shard; more is a hang
RESULT = Path(__file__).parents[2] / "bench" / "results" / "fuzz" / "shards.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first shard")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return _child(range(args.first, args.first + args.count))
    started = time.monotonic()
    rows, problems = list[dict[str, Any]](), list[str]()
    end = args.first + args.count
    for first in range(args.first, end, _PER_PROCESS):
        found, problem = _run_child(first, min(_PER_PROCESS, end - first))
        rows += found
        problems += problem
    problems += [f"{row['kind']} {row['seed']}: {row['problem']}" for row in rows if row["problem"]]
    result = {
        "command": f"python -m python_tests.long.fuzz_shards --count {args.count}",
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "shards": len(rows),
        "problems": problems,
        "seconds": round(time.monotonic() - started, 1),
        "slowest_shard_seconds": max((row["seconds"] for row in rows), default=0),
        "peak_memory_mib": max((row["memory_mib"] for row in rows), default=0),
        "by_kind": _by_kind(rows),
    }
    write_json(args.output, result)
    print(json.dumps({key: value for key, value in result.items() if key != "by_kind"}, indent=2))
    return 1 if problems or len(rows) < args.count else 0


def _by_kind(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        kinds[row["kind"]].update(row["found"], shards=1)
    return {kind: dict(sorted(found.items())) for kind, found in sorted(kinds.items())}


def _run_child(first: int, count: int) -> tuple[list[dict[str, Any]], list[str]]:
    command = [sys.executable, "-m", "python_tests.long.fuzz_shards", "--child"]
    command += ["--first", str(first), "--count", str(count)]
    rows = list[dict[str, Any]]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(json.loads(line))
    if process.returncode or len(rows) < count:
        return rows, [f"seed {first + len(rows)}: the process ended with {process.returncode}"]
    return rows, []


def _child(seeds: range) -> int:
    import signal

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["HOME"] = folder
        path = Path(folder) / "below" / "shard.tar"
        path.parent.mkdir()
        for seed in seeds:
            signal.alarm(_SECONDS)  # ends the process, which the parent reports as a hang
            kind, data, good = mutated(seed)
            path.write_bytes(data)
            before, began = tree(Path(folder)), time.monotonic()
            found, problem = Counter[str](), ""
            try:
                found = read_all_ways(path, good)
                if tree(Path(folder)) != before:
                    problem = "something was written"
            except Exception as error:  # any at all is a failure, to be told and not to stop at
                problem = f"{type(error).__name__}: {error}"
            row = {
                "seed": seed,
                "kind": kind,
                "found": found,
                "problem": problem,
                "seconds": round(time.monotonic() - began, 2),
                "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            }
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
