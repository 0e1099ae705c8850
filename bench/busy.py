"""Times the demo's training undisturbed and while another process takes one of the cores.

It runs `python bench/busy.py [--rounds 3] [--seconds 4] [--out FILE.json]`: PyTorch as it is, with
`ff.share_cores()` as on the command line, and with `train.fewer_threads_when_busy` as well, taking
turns in one process. `--same-bits 30` trains that many steps four times instead, with it and
without, disturbed or not, and compares losses and weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from franca_fast import share_cores  # noqa: E402
from franca_fast.benchmarks import machine  # noqa: E402
from franca_fast.config import load_config  # noqa: E402
from franca_fast.training.run import Run  # noqa: E402
from franca_fast.training.threads import cores_used  # noqa: E402

PLAIN, SHARED, FEWER = "PyTorch as it is", "ff.share_cores()", "and fewer threads"
LOADS = ("quiet", "busy")
Figures = dict[str, dict[str, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each way and load, at least")
    parser.add_argument("--same-bits", type=int, metavar="STEPS", help="compare results instead")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "busy.json")
    options = parser.parse_args()
    if options.same_bits:
        same_bits(options.same_bits)
        return
    rates, others = measure(options.rounds, options.seconds)
    about = {**machine(), "command": " ".join(["python", *sys.argv])}
    results = {"machine": about, "images_per_second": rates, "cores_of_others": others}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    text = (
        f"{table(rates)}\n\nImages a second of the demo's training, medians of {options.rounds}: "
        f"`{about['command']}`, {about['threads']} threads on {about['cores']} cores of "
        f"{about['cpu']}, PyTorch {about['torch']}, {about['date']}.\n"
    )
    options.out.with_suffix(".md").write_text(text)
    print(text)


def measure(rounds: int, seconds: float) -> tuple[Figures, Figures]:
    """Images a second, by way and load, and how many cores other processes used; of every round."""
    runs = {name: demo(f"train.fewer_threads_when_busy={name == FEWER}") for name in (PLAIN, FEWER)}
    runs[SHARED] = runs[PLAIN]
    ways = (PLAIN, SHARED, FEWER)
    rates, others = ({way: {load: [] for load in LOADS} for way in ways} for _ in range(2))
    threads = torch.get_num_threads()
    for run in set(runs.values()):
        train(run, 2)  # takes memory and starts threads
    for _ in range(rounds):
        for way in ways:
            with nullcontext() if way == PLAIN else share_cores():
                for load in LOADS:
                    with busy() if load == "busy" else nullcontext():
                        before = cores_used()
                        rates[way][load].append(rate(runs[way], seconds))
                        passed, used, own = np.subtract(cores_used(), before)
                        others[way][load].append((used - own) / passed)
            torch.set_num_threads(threads)
    return rates, others


def demo(*overrides: str) -> Run:
    run = Run(load_config("demo", ["train.device=cpu", *overrides]))
    run.start()
    return run


def train(run: Run, steps: int) -> list[float]:
    return [
        float(run.train_on(run.next_batches()[0], diagnose=False)[0].loss) for _ in range(steps)
    ]


def rate(run: Run, seconds: float) -> float:
    """Images a second of whole steps, until so much time has passed."""
    begin, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds:
        train(run, 1)
        steps += 1
    return steps * run.images_per_step / passed


@contextmanager
def busy() -> Iterator[None]:
    """Another process that always computes."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def table(rates: Figures) -> str:
    quiet, disturbed = ([statistics.median(r[load]) for r in rates.values()] for load in LOADS)
    lines = ["| | undisturbed | one core busy | of PyTorch's undisturbed |", "|---|---:|---:|---:|"]
    for way, a, b in zip(rates, quiet, disturbed, strict=True):
        lines.append(f"| {way} | {a:.0f} ({a / quiet[0]:.0%}) | {b:.0f} | {b / quiet[0]:.0%} |")
    return "\n".join(lines)


def same_bits(steps: int) -> None:
    results: dict[tuple[str, str], Any] = {}
    for way in (PLAIN, SHARED):
        for load in LOADS:
            run = demo()
            with (
                nullcontext() if way == PLAIN else share_cores(),
                busy() if load == "busy" else nullcontext(),
            ):
                losses = train(run, steps)
            digest = hashlib.sha256()
            for tensor in run.model.state_dict().values():
                digest.update(tensor.numpy().tobytes())
            results[way, load] = losses, digest.hexdigest()
            print(
                f"{way}, {load}: loss {losses[-1]!r}, weights {digest.hexdigest()[:16]}", flush=True
            )
            run.close()
    if any(result != results[PLAIN, "quiet"] for result in results.values()):
        raise SystemExit("the results differ")
    print(f"the same losses and weights in all {steps} steps")


if __name__ == "__main__":
    main()
