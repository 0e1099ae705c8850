"""Times the update of student and teacher, one pass beside the chain of operators that it replaces.

    python bench/update.py [--rounds 7] [--threads 2] [--out FILE.json]

The weights are those of a ViT-S/14 with two nested heads of 65,536 prototypes, gradients are
random. The chain is PyTorch's: the gradients are clipped in place, fused AdamW, and the teacher is
moved by a scaled copy of the student. Both take turns; figures are medians. Norms are no part of
either. Memory is what is held at a time beyond weights, gradients and moments.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from franca_fast import use_backend  # noqa: E402
from franca_fast.benchmarks import machine  # noqa: E402
from franca_fast.benchmarks.measure import peak_and_result_bytes  # noqa: E402
from franca_fast.config import load_config  # noqa: E402
from franca_fast.training.optimizer import LocalOptimizer, apply_step, set_schedule  # noqa: E402
from franca_fast.training.schedules import StepValues  # noqa: E402
from franca_fast.training.student_teacher import Network  # noqa: E402

OVERRIDES = ["train.dataset_path=unused", "student.arch=vit_small", "student.patch_size=14"]
OVERRIDES += ["dino.head_n_prototypes=65536", "ibot.head_n_prototypes=65536"]
OVERRIDES += ["ibot.separate_head=true", "crops.local_crops_size=98"]
MOMENTUM = 0.992
VALUES = StepValues(
    lr=1e-3, last_layer_lr=1e-3, weight_decay=0.04, momentum=MOMENTUM, teacher_temp=0.05
)


class Update:
    """Networks with gradients, and both ways of going on from them."""

    def __init__(self) -> None:
        config = load_config(None, OVERRIDES)
        networks = [Network(config, drop_path_rate=0.0) for _ in range(2)]
        self.student, self.teacher = (dict(network.named_parameters()) for network in networks)
        for tensor in self.teacher.values():
            tensor.requires_grad_(False)
        self.optimizer = LocalOptimizer(networks[0], config.optim)
        set_schedule(self.optimizer.adamw, VALUES)
        for tensor in self.student.values():
            tensor.grad = torch.randn_like(tensor).mul_(1e-3)
        self.clip = torch.full((len(self.optimizer.modules),), 0.999)
        self.finite = torch.tensor(True)

    def in_one_pass(self) -> tuple[Tensor, ...]:
        """The update as training runs it."""
        apply_step(
            self.optimizer,
            self.student,
            self.teacher,
            clip=self.clip,
            momentum=MOMENTUM,
            finite=self.finite,
        )
        return ()

    @torch.no_grad()
    def by_a_chain(self) -> tuple[Tensor, ...]:
        """The same, an operator after the other."""
        for name, factor in zip(self.optimizer.modules, self.clip.unbind(), strict=True):
            torch._foreach_mul_(self.optimizer.gradients(name), factor)
        adamw: Any = self.optimizer.adamw
        adamw.grad_scale, adamw.found_inf = None, (~self.finite).float()
        adamw.step()
        kept = torch.where(self.finite, MOMENTUM, 1.0)
        for name, teacher in self.teacher.items():
            scaled = self.student[name] * (1.0 - kept)
            teacher.mul_(kept).add_(scaled)
        return ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "update.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    use_backend("cpu")
    update = Update()
    works = {"a chain of operators": update.by_a_chain, "one pass": update.in_one_pass}
    peaks = {name: peak_and_result_bytes(work)[0] for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    n_bytes = 4 * sum(tensor.numel() for tensor in update.student.values())
    report = {
        "machine": {**machine(), "command": " ".join(["python", *sys.argv])},
        "parameter_bytes": n_bytes,
        "peak_extra_bytes": peaks,
        "median_seconds": medians,
        "seconds": seconds,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, median in medians.items():
        print(f"{name}: {median * 1e3:.0f} ms, {peaks[name] / 2**20:.1f} MiB beside the weights")
    print(f"{n_bytes / 4e6:.0f} million parameters")


if __name__ == "__main__":
    main()
