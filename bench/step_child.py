"""Trains one case, one step for each request: the child process of whole_step.py.

    python -m bench.step_child demo fp32 cpu [--package FOLDER] [section.key=value ...]

Nothing of the package is imported before the folder that it comes from is chosen, and no more is
used of it than an older version has, too.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from bench.turns import Turns

if TYPE_CHECKING:
    from franca_fast.training.run import Run

CASES: dict[str, tuple[str | None, list[str]]] = {
    "demo": ("demo", []),
    "vits14": (
        None,
        [
            "train.dataset_path=FashionMNIST:split=TRAIN",
            "train.batch_size_per_gpu=4",
            "train.num_workers=0",
            "train.scores=stored",
            "train.total_steps=200",
            "train.centering=sinkhorn_knopp",
            "student.arch=vit_small",
            "student.patch_size=14",
            "student.drop_path_rate=0.0",
            "crops.global_crops_size=224",
            "crops.local_crops_size=98",
            "crops.local_crops_number=8",
            "dino.head_n_prototypes=65536",
            "ibot.separate_head=true",
            "ibot.head_n_prototypes=65536",
            "optim.warmup_epochs=0",
        ],
    ),
}


def build(case: str, precision: str, overrides: list[str]) -> Run:
    """The run of a case on the CPU, before its first step."""
    from franca_fast.config import load_config
    from franca_fast.training.run import Run

    recipe, own = CASES[case]
    fixed = ["train.device=cpu", f"compute_precision.autocast={precision}"]
    run = Run(load_config(recipe, [*own, *fixed, *overrides]))
    run.start()
    return run


def operators(run: Run, batches: Any) -> dict[str, list[float]]:
    """Milliseconds and calls of each operator in one step, and under "" the step's own time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        begin = time.perf_counter()
        run.train_on(batches, diagnose=False)
        seconds = time.perf_counter() - begin
    found = {e.key: [e.self_cpu_time_total / 1e3, e.count] for e in profiler.key_averages()}
    return {**found, "": [1e3 * seconds, 1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("backend", choices=("cpu", "torch"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--package", help="folder with another version of franca_fast")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.package:
        sys.path.insert(0, options.package)
    turns = Turns()
    import torch

    from franca_fast import use_backend

    if options.threads:
        torch.set_num_threads(options.threads)
    with use_backend(options.backend):
        run = build(options.case, options.precision, options.overrides)
        request = turns.wait(images=run.images_per_step, threads=torch.get_num_threads())
        while True:
            batches, _ = run.next_batches()
            if request == "profile":
                request = turns.wait(operators=operators(run, batches))
                continue
            begin = time.perf_counter()
            output, _ = run.train_on(batches, diagnose=False)
            seconds = time.perf_counter() - begin
            request = turns.wait(seconds=seconds, loss=output.loss.item())


if __name__ == "__main__":
    main()
