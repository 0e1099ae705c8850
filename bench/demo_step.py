"""Times whole training steps of the demo on the cpu and on the torch backend, taking turns.

It runs `python bench/demo_step.py [--steps 15] [--threads 2] [--out FILE.json]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from franca_fast import use_backend  # noqa: E402
from franca_fast.benchmarks import machine  # noqa: E402
from franca_fast.config import load_config  # noqa: E402
from franca_fast.training.run import Run  # noqa: E402

BACKENDS = ("cpu", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15, help="of each backend")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "demo_step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(load_config("demo", ["train.device=cpu"]))
    run.start()
    seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for step in range(options.steps + 1):
        for name in BACKENDS:
            batches, _ = run.next_batches()
            with use_backend(name):
                begin = time.perf_counter()
                run.train_on(batches, diagnose=False)
                if step > 0:  # the first one takes memory and starts threads
                    seconds[name].append(time.perf_counter() - begin)
    run.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    about = {**machine(), "command": " ".join(["python", *sys.argv])}
    report = {"machine": about, "median_seconds": medians, "seconds": seconds}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    ratio = medians["torch"] / medians["cpu"]
    print(*(f"{name}: {value * 1e3:.1f} ms a step" for name, value in medians.items()), sep="\n")
    print(f"{ratio:.2f}x faster on the cpu backend, load average {about['load_average'][0]:.1f}")


if __name__ == "__main__":
    main()
