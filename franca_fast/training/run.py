"""The state of a run: networks, optimizer, position in the data and step, and their checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from franca_fast.backends import backend_table
from franca_fast.config.data import build_loader
from franca_fast.config.files import to_yaml
from franca_fast.config.schema import Config
from franca_fast.data import Batch
from franca_fast.errors import InputError
from franca_fast.hub import save_backbone
from franca_fast.hub.checkpoint_files import Checkpoint
from franca_fast.models import VisionTransformer
from franca_fast.training.checkpoints.state import (
    checkpoint_tensors,
    load_checkpoint,
    random_state,
    set_random_state,
)
from franca_fast.training.checkpoints.writer import CheckpointWriter
from franca_fast.training.distributed.parallelize import parallelize, whole
from franca_fast.training.distributed.world import World
from franca_fast.training.freed_memory import keep_freed_memory
from franca_fast.training.initial_weights import load_initial_weights
from franca_fast.training.optimizer import LocalOptimizer
from franca_fast.training.precision import choose_device, choose_precision
from franca_fast.training.reporting.stopwatch import Stopwatch
from franca_fast.training.schedules import Schedules, StepValues
from franca_fast.training.score_memory import choose_score_memory
from franca_fast.training.step import StepOutput, TrainStep
from franca_fast.training.student_teacher import StudentTeacher, build_student_backbone
from franca_fast.training.threads import Threads

logger = logging.getLogger(__name__)


class Run:
    """Everything that a run changes, on one rank.

    Building it checks the data, the device and the weights to start from, and writes nothing.

    Args:
        config: a checked configuration.
        world: the ranks; all build theirs together. None is this process alone.
        fresh: whether the run begins, and so with the weights that the configuration names;
            otherwise a checkpoint will be given to `resume`.

    Raises:
        InputError: data, device or weights that cannot be used.

    Attributes:
        config: the configuration.
        world: the ranks.
        device: where the networks are.
        model: student, teacher and losses.
        step: steps done.
        images_per_step: of all ranks and micro-batches.
    """

    def __init__(self, config: Config, world: World | None = None, *, fresh: bool = True) -> None:
        world = world or World()
        self.config, self.world = config, world
        self._config_text = to_yaml(config)
        with world.together():
            self.device = choose_device(config.train.device, world.local_rank)
            self.precision = choose_precision(config, self.device)
            self._loader = build_loader(config, self.device, world.rank, world.size)
            torch.manual_seed(config.train.seed)
            self.model = StudentTeacher(config)
            self._origin = load_initial_weights(self.model, config) if fresh else None
        self.score_memory = choose_score_memory(
            config,
            self.device,
            self.precision.dtype,
            self.model.scored_rows(config),
        )
        # One rank that must stream makes all of them: they then compute the same bits.
        streamed = world.all_reduce([self.score_memory.streamed])[0] > 0
        self.model.streamed_scores = streamed
        self.score_memory = self.score_memory._replace(streamed=streamed)
        self.model.to(self.device).train()
        self.layout = parallelize(self.model, config, world, self.precision)
        self.optimizer = LocalOptimizer(self.model.student, config.optim)
        self.images_per_step = (
            config.train.batch_size_per_gpu * config.train.gradient_accumulation_steps * world.size
        )
        self._schedules = Schedules(config, global_batch_size=self.images_per_step)
        self._train_step = TrainStep(
            self.model,
            self.optimizer,
            self.precision,
            self.layout,
            clip_grad=config.optim.clip_grad,
            seed=config.train.seed,
        )
        self.stopwatch = Stopwatch(
            self.model.teacher.heads().values(), self.device, config.train.log_every
        )
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            keep_freed_memory()
        self._threads = Threads(config.train.fewer_threads_when_busy and on_cpu)
        self.step = 0

    def next_batches(self) -> tuple[list[Batch], float]:
        """The next step's micro-batches, on the device, and the seconds it waited for them."""
        started = time.perf_counter()
        batches = [next(self._loader) for _ in range(self.config.train.gradient_accumulation_steps)]
        return batches, time.perf_counter() - started

    def train_on(
        self, batches: Sequence[Batch], *, diagnose: bool
    ) -> tuple[StepOutput, StepValues]:
        """Does the next step."""
        values = self._schedules.at(self.step)
        self._threads.adapt()
        self.stopwatch.start()
        with self.world.watch():
            output = self._train_step(self.step, batches, values, diagnose=diagnose)
        self.step += 1
        return output, values

    def start(self) -> dict[str, Any]:
        """Begins at step 0; returns the recorder's counters, which are empty."""
        self._describe("starting" + (f" from {self._origin}" if self._origin else ""))
        return {}

    def resume(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Continues after a checkpoint, before the first batch, on any number of ranks.

        The data goes on where all ranks together had stopped. Random states are those of rank 0;
        every step seeds its own.

        Returns:
            the recorder's counters.

        Raises:
            InputError: the checkpoint does not fit the configuration.
        """
        state = checkpoint.training
        with self.world.together():
            self._check_images(state)
            load_checkpoint(checkpoint, self.model, self.optimizer, self.layout)
            self._train_step.scaler.load_state_dict(state["scaler"])
            self._loader.load_state_dict(state["loader"])
            set_random_state(state["random"])
        self.step = checkpoint.step
        self._describe(f"resuming from checkpoint '{checkpoint.path}'")
        return state["counters"]

    def save(self, writer: CheckpointWriter, counters: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint of everything.

        Raises:
            CheckpointError: the one before could not be written; earlier ones are as they were.
        """
        writer.save(
            self.step,
            checkpoint_tensors(self.model, self.optimizer, self.layout),
            training={
                "scaler": self._train_step.scaler.state_dict(),
                "loader": self._loader.state_dict(),
                "random": random_state(),
                "counters": dict(counters),
                "ranks": self.world.size,
                "images_per_step": self.images_per_step,
            },
            config=self._config_text,
        )

    def teacher_backbone(self) -> VisionTransformer:
        """The teacher's backbone as one module; gathered by all ranks together where sharded."""
        backbone = self.model.teacher.backbone
        if self.layout.n_shards == 1:
            return backbone
        tensors = {name: whole(tensor) for name, tensor in backbone.state_dict().items()}
        with torch.device("meta"):
            copy = build_student_backbone(self.config, drop_path_rate=0.0)
        copy.load_state_dict(tensors, assign=True)
        return copy.eval().requires_grad_(False)

    def export(self, folder: Path) -> Path:
        """Writes the teacher's backbone as `teacher.safetensors` and `teacher.json`, on rank 0."""
        backbone = self.teacher_backbone()
        return self.world.on_first(lambda: save_backbone(backbone, folder / "teacher"))

    def close(self) -> None:
        """Ends the data workers and drops everything that holds on to the process group."""
        self._loader.close()
        self._threads.close()
        del self.model, self.layout, self.optimizer, self._train_step, self.stopwatch

    def _check_images(self, state: Mapping[str, Any]) -> None:
        """The images of a step may change with the number of ranks, and only then."""
        before, ranks = state["images_per_step"], state["ranks"]
        if before == self.images_per_step:
            return
        change = f"{before} images a step on {ranks} ranks before, {self.images_per_step} now"
        if ranks == self.world.size:
            raise InputError(
                f"{change}: restore train.batch_size_per_gpu and "
                "train.gradient_accumulation_steps to resume this run"
            )
        if self.world.is_first:
            logger.warning(
                "%s: another batch, and a learning rate that follows it; to keep both, set "
                "train.batch_size_per_gpu and train.gradient_accumulation_steps",
                change,
            )

    def _describe(self, beginning: str) -> None:
        if not self.world.is_first:
            return
        sizes = {
            name: sum(p.numel() for p in module.parameters()) / 1e6
            for name, module in self.model.student.named_children()
        }
        parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
        logger.info("%s; student parameters in millions: %s", beginning, parts)
        logger.info(
            "steps %d to %d on %s (%s) in %s, %d images a step",
            self.step,
            self.config.total_steps,
            self.device,
            self.layout,
            str(self.precision.dtype).removeprefix("torch."),
            self.images_per_step,
        )
        chosen = (
            f"{row.operator} {row.backend}"
            for row in backend_table()
            if row.chosen and row.device == self.device.type
        )
        logger.info("%s; operators: %s", self.score_memory, ", ".join(chosen))
