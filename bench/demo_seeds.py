"""Runs the demo with several seeds, one after the other: accuracy, its spread, and the time.

    python bench/demo_seeds.py [--seeds 101 102 103 104 105] [--threads 2] [key=value ...]

Writes results/demo/seeds.json, after every seed, and seeds.md. --name chooses another name, as for
the twin without nesting: --name unnested dino.MRL=false. The recipe's settings were chosen on a
held-out part of the training images, with seeds below 100; here the test images are classified.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from franca_fast.benchmarks import machine
from franca_fast.files import write_json, write_text

RESULTS = Path(__file__).parent / "results" / "demo"
SEEDS = (101, 102, 103, 104, 105)
K = "20"


def run_demo(seed: int, threads: int, overrides: list[str]) -> dict[str, Any]:
    """What the demo writes to results.json, of a run in a process and a folder of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        words = ["demo", "--output-dir", f"{folder}/demo", f"train.seed={seed}", *overrides]
        command = [sys.executable, "-m", "franca_fast", *words]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        results: dict[str, Any] = json.loads(Path(folder, "demo", "results.json").read_text())
    return results


def summary(report: dict[str, Any]) -> str:
    """The table: what each seed reached at every width, mean and standard deviation, pixels."""
    runs = report["seeds"]
    after = {seed: run["knn_after"] for seed, run in runs.items()}
    header = ["dimensions", *(f"seed {seed}" for seed in runs), "mean", "standard deviation"]
    rows = [header, ["---:"] * len(header)]
    first = next(iter(runs.values()))
    for m in first["knn_after"]:
        values = [accuracies[m][K] for accuracies in after.values()]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append([m, *(f"{value:.1f}" for value in (*values, statistics.mean(values), spread))])
    minutes = [run["training_seconds"] / 60 for run in runs.values()]
    rows.append(["minutes", *(f"{m:.1f}" for m in minutes), f"{statistics.mean(minutes):.1f}", ""])
    pixels = " and ".join(f"{at_k[K]:.1f} ({row})" for row, at_k in first["knn_pixels"].items())
    return "\n".join(
        [
            f"`{report['command']}`, {report['threads']} threads, {first['steps']} steps.",
            "",
            f"kNN accuracy (k = {K}, per cent) of the demo's features after training. "
            f"Of the pixels themselves: {pixels}.",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--name", default="seeds", help="of the two files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options, overrides = parser.parse_known_args()
    report = {
        "machine": machine(),
        "command": " ".join(["python", *sys.argv]),
        "threads": options.threads,
        "seeds": {},
    }
    for seed in options.seeds:
        report["seeds"][str(seed)] = run_demo(seed, options.threads, overrides)
        write_json(options.out / f"{options.name}.json", report)
        write_text(options.out / f"{options.name}.md", summary(report))
    print(summary(report))


if __name__ == "__main__":
    main()
