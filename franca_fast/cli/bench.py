"""Time the clustering operators on this machine beside the published loops.

Every line is one operator at one size: the median time, how many times faster than the eager loop,
the peak of extra memory and the part of it that is the result (in per cent of the logits), and the
share of the bandwidth of a plain copy of the same size. Takes less than a minute.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from franca_fast.cli.common import positive, table
from franca_fast.errors import InputError

GROUP = "machine"
_SECONDS = 1.0
_SIZES = ((64, "8192"), (64, "nested"), (512, "8192"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", metavar="TEXT", help="works whose name contains this")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there")
    parser.add_argument(
        "--compile", action="store_true", help="also time the loops under torch.compile"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> int:
    # PyTorch's profiler, which measures memory, would report its own starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from franca_fast import benchmarks
    from franca_fast.files import check_file, write_text
    from franca_fast.training.precision import choose_device

    if args.json:
        check_file(args.json, overwrite=True)
    device = choose_device(args.device).type
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = "bf16" if device == "cuda" else "fp32"
    cases = [
        make(n_rows, widths, dtype, args.compile, device)
        for make in (benchmarks.sinkhorn_case, benchmarks.loss_case)
        for n_rows, widths in _SIZES
    ]
    chosen = [case for case in cases if args.only in case.name]
    if not chosen:
        raise InputError(
            f"--only: {args.only!r}; accepted: part of {', '.join(case.name for case in cases)}"
        )
    about = benchmarks.machine()
    where = about["gpu"] if device == "cuda" else f"{about['cpu']}, {about['threads']} threads"
    print(f"{where}; load average {about['load_average'][0]:.1f}")
    report: dict[str, Any] = {"machine": about, "results": []}
    for case in chosen:
        report["results"].append(benchmarks.measure(case, _SECONDS, device))
    head, *rows = benchmarks.table(report["results"])
    print(table(head, rows, numeric=5))
    if args.json:
        write_text(args.json, json.dumps(report, indent=1) + "\n")
    return 0
