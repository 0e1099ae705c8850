"""Figures of a run: from tensors to numbers, to metrics.jsonl and to TensorBoard."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.files import atomic_path
from franca_fast.paths import utf8_path
from franca_fast.training.step import StepOutput


def to_numbers(outputs: Sequence[StepOutput]) -> list[dict[str, Any]]:
    """Reads the results of several steps from the device in one transfer.

    Returns:
        for each step a dictionary: "loss", the sum of each term under its name, the terms of the
        nested heads as lists under "<term>_heads", "grad_norm/<module>", "finite", and the
        statistics as lists.
    """
    rows = [_tensors(output) for output in outputs]
    flat = [tensor.detach().double().flatten() for row in rows for tensor in row.values()]
    values = iter(torch.cat(flat).tolist())
    numbers = []
    for row, output in zip(rows, outputs, strict=True):
        line: dict[str, Any] = {}
        for name, tensor in row.items():
            taken = [next(values) for _ in range(tensor.numel())]
            if tensor.ndim == 0:
                line[name] = taken[0]
            elif name in output.terms:
                line[name], line[f"{name}_heads"] = math.fsum(taken), taken
            else:
                line[name] = taken
        line["finite"] = bool(line["finite"])
        numbers.append(line)
    return numbers


class MetricsFile:
    """metrics.jsonl: one JSON object a line, in the order of the steps.

    Args:
        path: the file; it may be missing.
        last_step: lines of later steps, which a resumed run is about to repeat, are cut.

    Attributes:
        last: the last step's line that was kept; empty when there is none.
    """

    def __init__(self, path: Path, *, last_step: int) -> None:
        kept = [
            line for line in map(json.loads, _complete_lines(path)) if line["step"] <= last_step
        ]
        with atomic_path(path) as temporary:
            temporary.write_text(
                "".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8"
            )
        self.last: dict[str, Any] = next((line for line in reversed(kept) if "loss" in line), {})
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line; numbers that JSON lacks (nan, inf) become null."""
        self._file.write(json.dumps({key: _finite(value) for key, value in line.items()}) + "\n")
        self._file.flush()

    def force(self) -> None:
        """Waits until everything written is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """TensorBoard scalars; does nothing where tensorboard is not installed or not wanted.

    Args:
        folder: of the event files.
        first_step: points from here on, left by a run that was killed, are hidden.
        enabled: false writes nothing.
    """

    def __init__(self, folder: Path, *, first_step: int, enabled: bool) -> None:
        self._writer: Any = None
        self._open = ExitStack()
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        folder.mkdir(parents=True, exist_ok=True)
        written = self._open.enter_context(utf8_path(folder))
        self._writer = SummaryWriter(str(written), purge_step=first_step)

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds every number, and every entry of a list of numbers, as a scalar."""
        if self._writer is None:
            return
        for name, value in _scalars(numbers):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
        self._open.close()


class WandB:
    """Points in Weights & Biases, which sends them to its server unless WANDB_MODE says otherwise.

    Args:
        project: name of the project.
        folder: of the run; its name is that of the W&B run, which a resumed run goes on with.
        config: all settings of the run.

    Raises:
        InputError: wandb is not installed.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                f"train.wandb: '{project}' needs the package wandb, which is not installed; "
                "install franca-fast[wandb], or leave train.wandb empty"
            ) from error
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds every number, and every entry of a list of numbers, as a point."""
        self._run.log(dict(_scalars(numbers)), step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


def _scalars(numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number; the entries of a list as "<name>/<i>"."""
    for name, value in numbers.items():
        if isinstance(value, list):
            yield from ((f"{name}/{i}", entry) for i, entry in enumerate(value))
        elif isinstance(value, (int, float)):
            yield name, value


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory in use so far: of the GPU, or of this process on the CPU. In 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        # Not getrusage: on Linux its figure may be that of the process which started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _tensors(output: StepOutput) -> dict[str, Tensor]:
    norms = {f"grad_norm/{name}": norm for name, norm in output.norms.items()}
    return {
        "loss": output.loss,
        **output.terms,
        **norms,
        "finite": output.finite,
        **output.statistics,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return value


def _complete_lines(path: Path) -> list[str]:
    """The lines of a file without a last one that a killed process left unfinished."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return lines[:-1]
