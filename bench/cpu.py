"""Times the clustering operators on CPU beside their baselines, and measures their memory.

    python bench/cpu.py [--threads 2] [--seconds 0.5] [--compile] [--only N=64] [--out FILE.json]

All sizes of the table in bench/results/; `franca-fast bench` measures the small ones. The variants
of a case take turns in one process, so that what else the machine does hits all of them. The table
shows medians; the file has every measurement. Memory is the peak beyond the inputs and the part of
it that is the result (assignments, potentials, gradients), as shares of the logits of one side in
float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from franca_fast import use_backend  # noqa: E402
from franca_fast.benchmarks import (  # noqa: E402
    loss_case,
    machine,
    measure,
    scores_case,
    sinkhorn_case,
    table,
)

SIZES = [(4, "5x8"), (64, "5x512")] + [
    (n_rows, widths) for n_rows in (64, 512) for widths in ("8192", "131072", "nested")
]


def markdown(rows: list[list[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "| --- | --- | ---: | ---: | ---: | ---: | ---: |", *body])


def main() -> None:
    """Measures all cases and writes JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each case")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a baseline, too")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Asked for, so that nothing else is measured by mistake.
    use_backend("cpu")
    command = " ".join(["python", *sys.argv])
    report: dict[str, Any] = {"machine": {**machine(), "command": command}, "results": []}
    for make in (sinkhorn_case, loss_case, scores_case):
        for n_rows, widths in SIZES:
            for dtype in ("fp32", "bf16"):
                case = make(n_rows, widths, dtype, options.compile)
                if options.only in case.name:
                    report["results"].append(measure(case, options.seconds))
                    print(*(" ".join(r) for r in table(report["results"][-1:])[1:]), sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    about = report["machine"]
    load = ", ".join(f"{value:.1f}" for value in about["load_average"])
    options.out.with_suffix(".md").write_text(
        f"`{command}` on {about['cpu']}, {about['threads']} threads, load average {load}\n\n"
        f"{markdown(table(report['results']))}\n"
    )


if __name__ == "__main__":
    main()
