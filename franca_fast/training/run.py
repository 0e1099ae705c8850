"""The state of a run: networks, optimizer, position in the data and step, and their checkpoints."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from franca_fast.backends import backend_table
from franca_fast.errors import InputError
from franca_fast.training.checkpoint import Checkpoint, save_checkpoint
from franca_fast.training.config import Config
from franca_fast.training.config_files import to_yaml
from franca_fast.training.data_settings import build_loader
from franca_fast.training.optimizer import build_optimizer
from franca_fast.training.precision import choose_device, choose_precision
from franca_fast.training.schedules import Schedules, StepValues
from franca_fast.training.score_memory import choose_score_memory
from franca_fast.training.state import (
    load_networks_state,
    load_optimizer_state,
    networks_state,
    optimizer_state,
    random_state,
    set_random_state,
)
from franca_fast.training.step import StepOutput, TrainStep
from franca_fast.training.student_teacher import StudentTeacher
from franca_fast.training.weights import load_initial_weights

if TYPE_CHECKING:
    from franca_fast.data import Batch

logger = logging.getLogger(__name__)


class Run:
    """Everything that a run changes, on one process.

    Building it checks the data, the device and the weights to start from, and writes nothing.

    Args:
        config: a checked configuration.
        fresh: whether the run begins, and so with the weights that the configuration names;
            otherwise a checkpoint will be given to `resume`.

    Raises:
        InputError: data, device or weights that cannot be used.

    Attributes:
        config: the configuration.
        device: where the networks are.
        model: student, teacher and losses.
        step: steps done.
    """

    def __init__(self, config: Config, *, fresh: bool = True) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}; expected 1, as training runs in one "
                "process: start it without torchrun"
            )
        self.config = config
        self._config_text = to_yaml(config)
        self.device = choose_device(config.train.device)
        self.precision = choose_precision(config, self.device)
        self._loader = build_loader(config, self.device)
        torch.manual_seed(config.train.seed)
        self.model = StudentTeacher(config)
        self._origin = load_initial_weights(self.model, config) if fresh else None
        self.score_memory = choose_score_memory(
            config,
            self.device,
            self.precision.dtype,
            self.model.student.image_head() if self.model.image_weight else None,
            self.model.student.patch_head() if self.model.patch_weight else None,
        )
        self.model.streamed_scores = self.score_memory.streamed
        self.model.to(self.device).train()
        if config.train.compile:
            self.model.compile_blocks()
        self.optimizer = build_optimizer(self.model.student, config.optim)
        self._schedules = Schedules(config, global_batch_size=config.train.batch_size_per_gpu)
        self._train_step = TrainStep(
            self.model,
            self.optimizer,
            self.precision,
            clip_grad=config.optim.clip_grad,
            seed=config.train.seed,
        )
        self.step = 0

    def next_batch(self) -> tuple[Batch, float]:
        """The next batch, on the device, and the seconds that the step waited for it."""
        started = time.perf_counter()
        batch = next(self._loader)
        return batch, time.perf_counter() - started

    def train_on(self, batch: Batch, *, diagnose: bool) -> tuple[StepOutput, StepValues]:
        """Does the next step."""
        values = self._schedules.at(self.step)
        output = self._train_step(self.step, batch, values, diagnose=diagnose)
        self.step += 1
        return output, values

    def start(self) -> dict[str, Any]:
        """Begins at step 0; returns the recorder's counters, which are empty."""
        self._describe("starting" + (f" from {self._origin}" if self._origin else ""))
        return {}

    def resume(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Continues after a checkpoint, before the first batch.

        Returns:
            the recorder's counters.

        Raises:
            InputError: the checkpoint does not fit the configuration.
        """
        load_networks_state(self.model, checkpoint.model)
        state = checkpoint.training
        load_optimizer_state(self.optimizer, self.model.student, state["optimizer"])
        self._train_step.scaler.load_state_dict(state["scaler"])
        self._loader.load_state_dict(state["loader"])
        set_random_state(state["random"])
        self.step = checkpoint.step
        self._describe(f"resuming from checkpoint '{checkpoint.path}'")
        return state["counters"]

    def save(self, folder: Path, counters: Mapping[str, Any]) -> Path:
        """Writes a checkpoint of everything.

        Raises:
            CheckpointError: it could not be written; earlier ones are as they were.
        """
        return save_checkpoint(
            folder,
            self.step,
            model=networks_state(self.model),
            training={
                "optimizer": optimizer_state(self.optimizer, self.model.student),
                "scaler": self._train_step.scaler.state_dict(),
                "loader": self._loader.state_dict(),
                "random": random_state(),
                "counters": dict(counters),
            },
            config=self._config_text,
            keep=self.config.train.checkpoint_keep,
        )

    def export(self, folder: Path) -> Path:
        """Writes the teacher's backbone as `teacher.safetensors` and `teacher.json`."""
        from franca_fast.hub import save_backbone

        return save_backbone(self.model.teacher.backbone, folder / "teacher")

    def close(self) -> None:
        """Ends the data workers."""
        self._loader.close()

    def _describe(self, beginning: str) -> None:
        sizes = {
            name: sum(p.numel() for p in module.parameters()) / 1e6
            for name, module in self.model.student.named_children()
        }
        parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
        logger.info("%s; student parameters in millions: %s", beginning, parts)
        logger.info(
            "steps %d to %d on %s in %s, %d images a step",
            self.step,
            self.config.total_steps,
            self.device,
            str(self.precision.dtype).removeprefix("torch."),
            self.config.train.batch_size_per_gpu,
        )
        chosen = (
            f"{row.operator} {row.backend}"
            for row in backend_table()
            if row.chosen and row.device == self.device.type
        )
        logger.info("%s; operators: %s", self.score_memory, ", ".join(chosen))
