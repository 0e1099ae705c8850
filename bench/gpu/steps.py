"""Part: whole training steps of a recipe on every backend: images a second, memory, kernels.

python -m bench.gpu.steps vitb14_in21k [--batch-size 32] [--backend cuda ...]

Student, teacher, losses and optimizer are those of training; the images are random, the masks are
not. Every backend trains the same networks in turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import franca_fast as ff
from bench.gpu import record
from bench.gpu.options import parse
from franca_fast.backends import registry
from franca_fast.config import Config, load_config
from franca_fast.config.data import mask_settings
from franca_fast.data.batch import Batch
from franca_fast.data.masking import build_mask, sample_masks
from franca_fast.training.distributed.parallelize import parallelize
from franca_fast.training.distributed.world import World
from franca_fast.training.optimizer import LocalOptimizer
from franca_fast.training.precision import choose_precision
from franca_fast.training.schedules import Schedules
from franca_fast.training.step import TrainStep
from franca_fast.training.student_teacher import StudentTeacher

WARM_UPS, FEWEST_STEPS, MOST_STEPS = 3, 3, 10
SECONDS = 4.0  # after so many no step is added, so that a slow backend costs no other its turn
# Recipes with what is changed in them: the same recipe for a smaller network.
RECIPES = {
    "vits14": ("vitb14_in21k", ["student.arch=vit_small"]),
}
# What a dry run changes: everything small.
TINY = [
    "student.arch=vit_nano",
    "dino.head_n_prototypes=64",
    "ibot.head_n_prototypes=64",
    "dino.head_hidden_dim=16",
    "ibot.head_hidden_dim=16",
    "crops.global_crops_size=28",
    "crops.local_crops_size=14",
    "crops.local_crops_number=2",
]


def recipe(name: str, batch_size: int, device: str) -> Config:
    """The configuration of a recipe, or of one that differs a little from it."""
    base, changes = RECIPES.get(name, (name, []))
    own = [*changes, f"train.batch_size_per_gpu={batch_size}", "train.dataset_path=FashionMNIST"]
    return load_config(base, [*own, *(TINY if device == "cpu" else [])])


def random_batch(config: Config, device: torch.device) -> Batch:
    """A batch of noise with masks as in training."""
    size, crops = config.train.batch_size_per_gpu, config.crops
    settings = mask_settings(config)
    mask = build_mask(settings, crops.global_crops_size // config.student.patch_size)
    masks = sample_masks(mask, settings, config.train.seed, 0, size)
    weights = (1 / masks.sum(1, dtype=torch.float32))[:, None].expand_as(masks)[masks]
    local = crops.local_crops_number
    return Batch(
        global_crops=torch.randn(2 * size, 3, *(2 * [crops.global_crops_size])),
        local_crops=torch.randn(local * size, 3, *(2 * [crops.local_crops_size])),
        masks=masks,
        mask_indices=masks.flatten().nonzero().flatten(),
        mask_weights=weights,
        keys=[],
    ).to(device)


class Trainer:
    """The parts of a run that a step needs."""

    def __init__(self, config: Config, device: torch.device) -> None:
        torch.manual_seed(config.train.seed)
        with device:
            self.model = StudentTeacher(config).train()
        precision = choose_precision(config, device)
        layout = parallelize(self.model, config, World(), precision)
        self.optimizer = LocalOptimizer(self.model.student, config.optim)
        self._step = TrainStep(
            self.model,
            self.optimizer,
            precision,
            layout,
            clip_grad=config.optim.clip_grad,
            seed=config.train.seed,
        )
        self._schedules = Schedules(config, global_batch_size=config.train.batch_size_per_gpu)
        # Past the warm-ups: prototypes are trained, too.
        self.step = config.total_steps // 2

    def __call__(self, batch: Batch) -> Any:
        """One step."""
        output = self._step(self.step, [batch], self._schedules.at(self.step))
        self.step += 1
        return output


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed_steps(step: Callable[[int], object], seconds: float) -> list[float]:
    """Seconds of each of several steps; of fewer steps, when they are slow."""
    times: list[float] = []
    while len(times) < FEWEST_STEPS or (sum(times) < seconds and len(times) < MOST_STEPS):
        begin = time.perf_counter()
        step(len(times))
        times.append(time.perf_counter() - begin)
    return times


def measure(
    trainer: Trainer, batches: list[Batch], device: torch.device, seconds: float
) -> dict[str, Any]:
    """Times of steps, each waited for, and of as many in a row, which are not."""

    def step(i: int) -> Any:
        return trainer(batches[i % len(batches)])

    def step_waited_for(i: int) -> None:
        step(i)
        synchronize(device)

    for i in range(WARM_UPS if seconds else 1):
        step_waited_for(i)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = timed_steps(step_waited_for, seconds)
    begin = time.perf_counter()
    for i in range(len(times)):
        output = step(i)
    host = (time.perf_counter() - begin) / len(times)
    synchronize(device)
    in_a_row = (time.perf_counter() - begin) / len(times)
    images = batches[0].masks.shape[0] // 2
    found = {
        "steps": len(times),
        "step_ms": 1e3 * statistics.median(times),
        "in_a_row_ms": 1e3 * in_a_row,
        "host_ms": 1e3 * host,
        "images_per_second": images / in_a_row,
        "loss": float(output.loss),
        "finite": bool(output.finite),
    }
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def kernel_table(trainer: Trainer, batch: Batch) -> str:
    """Where the time of a step goes on the GPU."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        trainer(batch)
        torch.cuda.synchronize()
    averages = profiler.key_averages()
    rows = [e for e in averages if e.device_type == torch.autograd.DeviceType.CUDA]
    rows.sort(key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in rows)
    lines = [f"{total / 1e3:10.3f} ms on the GPU in {sum(e.count for e in rows)} kernels"]
    for e in rows[:60]:
        share = e.self_device_time_total / total
        lines.append(
            f"{e.self_device_time_total / 1e3:10.3f} {share:6.1%} {e.count:6d}  {e.key[:150]}"
        )
    return "\n".join(lines)


def main() -> int:
    """Adds one row for each backend; returns 0 when all of them trained."""
    options = parse(
        __doc__,
        recipe={"positional": True},
        batch_size={"type": int, "default": 32, "help": "images; 2 in a dry run"},
        backend={"action": "append", "help": "these only"},
    )
    device = torch.device(options.device)
    if options.device == "cpu":
        options.batch_size, options.backend = 2, ["torch"]
    config = recipe(options.recipe, options.batch_size, options.device)
    begin = time.monotonic()
    trainer = Trainer(config, device)
    synchronize(device)
    record.add(recipe=options.recipe, build_seconds=round(time.monotonic() - begin, 1))
    batches = [random_batch(config, device) for _ in range(2)]
    like = torch.empty(0, dtype=torch.bfloat16, device=device)
    names = options.backend or registry.available("sinkhorn", like)
    seconds, well = SECONDS if device.type == "cuda" else 0.0, True
    for name in names:
        where = {"recipe": options.recipe, "backend": name, "batch_size": options.batch_size}
        try:
            with ff.use_backend(name):
                record.add(**where, **measure(trainer, batches, device, seconds))
                if device.type == "cuda" and name != "torch":  # its thousands of kernels take long
                    print(f"{options.recipe} on {name}\n{kernel_table(trainer, batches[0])}")
        except Exception as error:
            well = False
            record.add(**where, error=f"{type(error).__name__}: {error}"[:2000])
            trainer.optimizer.zero_grad()
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
