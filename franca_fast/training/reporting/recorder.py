"""Turns the results of steps into lines of metrics.jsonl, TensorBoard points and counts."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from franca_fast.config.schema import Config
from franca_fast.data import Batch
from franca_fast.training.distributed.world import World
from franca_fast.training.reporting.metrics import (
    MetricsFile,
    TensorBoard,
    WandB,
    peak_memory_gb,
    to_numbers,
)
from franca_fast.training.reporting.stopwatch import Stopwatch
from franca_fast.training.run_directory import RunDirectory
from franca_fast.training.schedules import StepValues
from franca_fast.training.step import StepOutput

logger = logging.getLogger(__name__)

# What became of images (see `franca_fast.data.accounting`), under their names in metrics.jsonl.
_IMAGES = ("found_samples", "used_samples", "skipped_samples", "left_out_samples")


class Recorder:
    """Collects results on the device and writes them when `flush` reads them.

    All ranks collect, as speed and skipped samples are figures of all; rank 0 writes.

    Args:
        directory: of the run.
        device: of the results.
        world: the ranks.
        stopwatch: of this rank's own work.
        last_step: steps done before; -1 for a new run. Later lines in metrics.jsonl are cut.
        counters: as `counters` gave them to the checkpoint; empty for a new run.
        config: `train.log_every` is the number of steps between TensorBoard points, and over which
            speed is averaged; `train.tensorboard` and `train.wandb` write there too.

    Attributes:
        last: the last line of a step, of this process or an earlier one; empty before the first.
        skipped_in_row: how many of the latest steps in a row were not finite.
    """

    def __init__(
        self,
        directory: RunDirectory,
        device: torch.device,
        world: World,
        stopwatch: Stopwatch,
        *,
        last_step: int,
        counters: Mapping[str, Any],
        config: Config,
    ) -> None:
        train = config.train
        self._boards: list[TensorBoard | WandB] = []
        self._file: MetricsFile | None = None
        if world.is_first:
            self._file = MetricsFile(directory.metrics_file, last_step=last_step)
            board = TensorBoard(
                directory.tensorboard, first_step=last_step + 1, enabled=train.tensorboard
            )
            self._boards.append(board)
            if train.wandb:
                self._boards.append(WandB(train.wandb, directory.path, asdict(config)))
        self._device, self._log_every, self._world = device, train.log_every, world
        self._stopwatch = stopwatch
        self._waiting: list[tuple[dict[str, Any], StepOutput]] = []
        # Seconds, seconds of waiting for data and images of the latest steps.
        self._pace: deque[tuple[float, float, int]] = deque(maxlen=train.log_every)
        self._clock = time.perf_counter()
        self._skipped_steps = int(counters.get("skipped_steps", 0))
        self._images = [int(counters.get(name, 0)) for name in _IMAGES]
        self._images_here = [0] * len(_IMAGES)  # not yet counted with those of the other ranks
        self.skipped_in_row = int(counters.get("skipped_in_row", 0))
        self.last: Mapping[str, Any] = {} if self._file is None else self._file.last

    def start_clock(self) -> None:
        """Begins the time of the next step, leaving out what happened between steps."""
        self._clock = time.perf_counter()

    def add(
        self,
        step: int,
        output: StepOutput,
        values: StepValues,
        batches: Sequence[Batch],
        *,
        waited: float,
    ) -> None:
        """Notes a step without reading its results.

        Args:
            step: steps done, this one included.
            output: of the step.
            values: the schedules' values in it.
            batches: what it was trained on.
            waited: seconds that the step waited for them.
        """
        now = time.perf_counter()
        self._pace.append((now - self._clock, waited, sum(len(batch.keys) for batch in batches)))
        self._clock = now
        for account in (batch.account for batch in batches):
            counts = account.found, account.used, account.skipped.total(), account.left_out.total()
            self._images_here = [sum(pair) for pair in zip(self._images_here, counts, strict=True)]
        self._waiting.append(({"step": step, **asdict(values)}, output))

    def flush(self, *, interval: bool = True) -> Mapping[str, Any]:
        """Reads the results noted since the last time and writes their lines.

        Args:
            interval: also compare the ranks; all call it with the same value.

        Returns:
            the last line.
        """
        if not self._waiting:
            return self.last
        numbers = to_numbers([output for _, output in self._waiting])
        pace = self._figures(compare=interval)
        for (line, _), results in zip(self._waiting, numbers, strict=True):
            self.skipped_in_row = 0 if results["finite"] else self.skipped_in_row + 1
            self._skipped_steps += not results["finite"]
            counts = {"skipped_steps": self._skipped_steps, **self._image_counts()}
            self.last = {**line, **results, **counts, **pace}
            if self._file is not None:
                self._file.write(self.last)
            if line["step"] % self._log_every == 0:
                for board in self._boards:
                    board.write(line["step"], self.last)
        self._waiting.clear()
        return self.last

    def add_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the figures of an evaluation after `step` steps."""
        numbers = {f"evaluation/{name}": value for name, value in figures.items()}
        if self._file is not None:
            self._file.write({"step": step, **numbers})
        for board in self._boards:
            board.write(step, numbers)
        if figures:
            listed = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            logger.info("evaluation after step %d: %s", step, listed)

    def force(self) -> None:
        """Writes everything and waits until it is on the disk."""
        self.flush()
        if self._file is not None:
            self._file.force()

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps of this; call `flush` before."""
        return {
            "skipped_steps": self._skipped_steps,
            "skipped_in_row": self.skipped_in_row,
            **self._image_counts(),
        }

    def _image_counts(self) -> dict[str, int]:
        return dict(zip(_IMAGES, self._images, strict=True))

    def seconds_per_step(self) -> float:
        """Mean over the latest steps; 0 before the first."""
        return sum(seconds for seconds, _, _ in self._pace) / max(1, len(self._pace))

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        for board in self._boards:
            board.close()

    def _figures(self, *, compare: bool) -> dict[str, float]:
        """Speed and memory over the latest steps, of all ranks."""
        seconds, waited, images = (sum(column) for column in zip(*self._pace, strict=True))
        memory = peak_memory_gb(self._device)
        own = waited / len(self._pace) + (self._stopwatch.seconds() if compare else 0.0)
        here = self._images_here
        rows = self._world.all_gather([seconds, waited, images, memory, own, *here])
        columns = list(zip(*rows, strict=True))
        self._images = [
            before + int(sum(new)) for before, new in zip(self._images, columns[5:], strict=True)
        ]
        self._images_here = [0] * len(here)
        speed = sum(columns[2]) / max(columns[0])
        figures = {
            "images_per_second": speed,
            "data_wait": sum(columns[1]) / sum(columns[0]),
            "peak_memory_gb": max(columns[3]),
        }
        if len(rows) > 1:
            figures |= {"ranks": len(rows), "images_per_second_per_gpu": speed / len(rows)}
            if compare:
                slowest = max(columns[4])
                figures |= {
                    "slowest_rank": columns[4].index(slowest),
                    "slowest_rank_excess": slowest / max(median(columns[4]), 1e-9) - 1.0,
                }
        return figures
