"""Turns the results of steps into lines of metrics.jsonl, TensorBoard points and counts."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from franca_fast.training.metrics import MetricsFile, TensorBoard, peak_memory_gb, to_numbers
from franca_fast.training.run_directory import RunDirectory
from franca_fast.training.schedules import StepValues
from franca_fast.training.step import StepOutput

if TYPE_CHECKING:
    from franca_fast.data import Batch


class Recorder:
    """Collects results on the device and writes them when `flush` reads them.

    Args:
        directory: of the run.
        device: of the results.
        last_step: steps done before; -1 for a new run. Later lines in metrics.jsonl are cut.
        counters: as `counters` gave them to the checkpoint; empty for a new run.
        log_every: steps between TensorBoard points, and over which speed is averaged.
        tensorboard: also write TensorBoard files.

    Attributes:
        last: the last line of a step, of this process or an earlier one; empty before the first.
        skipped_in_row: how many of the latest steps in a row were not finite.
    """

    def __init__(
        self,
        directory: RunDirectory,
        device: torch.device,
        *,
        last_step: int,
        counters: Mapping[str, Any],
        log_every: int,
        tensorboard: bool,
    ) -> None:
        self._file = MetricsFile(directory.metrics_file, last_step=last_step)
        self._board = TensorBoard(
            directory.tensorboard, first_step=last_step + 1, enabled=tensorboard
        )
        self._device, self._log_every = device, log_every
        self._waiting: list[tuple[dict[str, Any], StepOutput]] = []
        # Seconds, seconds of waiting for data and images of the latest steps.
        self._pace: deque[tuple[float, float, int]] = deque(maxlen=log_every)
        self._clock = time.perf_counter()
        self._skipped_steps = int(counters.get("skipped_steps", 0))
        self._skipped_samples = Counter(counters.get("skipped_samples", {}))
        self.skipped_in_row = int(counters.get("skipped_in_row", 0))
        self.last: Mapping[str, Any] = self._file.last

    def start_clock(self) -> None:
        """Begins the time of the next step, leaving out what happened between steps."""
        self._clock = time.perf_counter()

    def add(
        self, step: int, output: StepOutput, values: StepValues, batch: Batch, *, waited: float
    ) -> None:
        """Notes a step without reading its results.

        Args:
            step: steps done, this one included.
            output: of the step.
            values: the schedules' values in it.
            batch: what it was trained on.
            waited: seconds that the step waited for the batch.
        """
        now = time.perf_counter()
        self._pace.append((now - self._clock, waited, len(batch.keys)))
        self._clock = now
        self._skipped_samples.update(batch.skipped)
        line = {"step": step, **asdict(values)}
        line["skipped_samples"] = self._skipped_samples.total()
        self._waiting.append((line, output))

    def flush(self) -> Mapping[str, Any]:
        """Reads the results noted since the last time and writes their lines.

        Returns:
            the last line.
        """
        if not self._waiting:
            return self.last
        numbers = to_numbers([output for _, output in self._waiting])
        pace = self._figures()
        for (line, _), results in zip(self._waiting, numbers, strict=True):
            self.skipped_in_row = 0 if results["finite"] else self.skipped_in_row + 1
            self._skipped_steps += not results["finite"]
            self.last = {**line, **results, "skipped_steps": self._skipped_steps, **pace}
            self._file.write(self.last)
            if line["step"] % self._log_every == 0:
                self._board.write(line["step"], self.last)
        self._waiting.clear()
        return self.last

    def add_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the figures of an evaluation after `step` steps."""
        numbers = {f"evaluation/{name}": value for name, value in figures.items()}
        self._file.write({"step": step, **numbers})
        self._board.write(step, numbers)

    def force(self) -> None:
        """Writes everything and waits until it is on the disk."""
        self.flush()
        self._file.force()

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps of this; call `flush` before."""
        return {
            "skipped_steps": self._skipped_steps,
            "skipped_in_row": self.skipped_in_row,
            "skipped_samples": dict(self._skipped_samples),
        }

    def seconds_per_step(self) -> float:
        """Mean over the latest steps; 0 before the first."""
        return sum(seconds for seconds, _, _ in self._pace) / max(1, len(self._pace))

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()

    def _figures(self) -> dict[str, float]:
        seconds, waited, images = (sum(column) for column in zip(*self._pace, strict=True))
        return {
            "images_per_second": images / seconds,
            "data_wait": waited / seconds,
            "peak_memory_gb": peak_memory_gb(self._device),
        }
