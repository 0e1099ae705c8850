"""One training step: a function of the run's state, a batch and the step's number."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from franca_fast.training.diagnostics import assignment_statistics
from franca_fast.training.optimizer import (
    apply_step,
    clip_gradients,
    set_schedule,
    update_teacher,
)
from franca_fast.training.precision import Precision
from franca_fast.training.schedules import StepValues
from franca_fast.training.student_teacher import StudentTeacher

if TYPE_CHECKING:
    from franca_fast.data import Batch


@dataclass
class StepOutput:
    """What a step did; tensors stay on the device until somebody reads them.

    Attributes:
        loss: the total, scalar.
        terms: see `Losses.terms`.
        norms: gradient norm before clipping of the backbone and each head.
        finite: 0-dim bool, false when the step was left out.
        statistics: of the assignments, when asked for.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    norms: dict[str, Tensor]
    finite: Tensor
    statistics: dict[str, Tensor]


class TrainStep:
    """Runs steps on one model and optimizer.

    Args:
        model: student, teacher and losses, on the device.
        optimizer: fused AdamW over the student.
        precision: of the forward and backward pass.
        clip_grad: largest gradient norm of each module; 0 does not clip.
        seed: of the run.
    """

    def __init__(
        self,
        model: StudentTeacher,
        optimizer: torch.optim.AdamW,
        precision: Precision,
        *,
        clip_grad: float,
        seed: int,
    ) -> None:
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.scaler = precision.scaler()
        self._clip_grad, self._seed = clip_grad, seed
        self._teacher = list(model.teacher.parameters())
        self._student = list(model.student.parameters())

    def __call__(
        self, step: int, batch: Batch, values: StepValues, *, diagnose: bool = False
    ) -> StepOutput:
        """Trains on a batch.

        A non-finite loss or gradient changes neither parameters, optimizer, teacher nor centres.
        That is decided on the device, so the host need not wait for it.

        Args:
            step: number of the step, from 0; with the seed it fixes every random draw.
            batch: on the model's device.
            values: of the schedules at this step.
            diagnose: also look at the assignments.
        """
        seed_step(self._seed, step)
        set_schedule(self.optimizer, values)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            losses = self.model(batch, values.teacher_temp)
        self.scaler.scale(losses.total).backward()
        self.scaler.unscale_(self.optimizer)
        norms = clip_gradients(self.model.student, self._clip_grad)
        finite = torch.stack([losses.total.detach(), *norms.values()]).isfinite().all()
        apply_step(self.optimizer, finite)
        self.scaler.update()
        update_teacher(self._teacher, self._student, values.momentum, finite)
        self.model.update_centers(losses, finite)
        statistics = {}
        if diagnose:
            for name, targets in losses.targets.items():
                for key, value in assignment_statistics(targets).items():
                    statistics[f"{name}_{key}"] = value
        return StepOutput(losses.total.detach(), losses.terms, norms, finite, statistics)


def seed_step(seed: int, step: int) -> None:
    """Seeds all global generators for one step, so that it draws the same after a resume."""
    words = np.random.SeedSequence((seed, step)).generate_state(2, np.uint32)
    number = int(words[0]) << 32 | int(words[1])
    torch.manual_seed(number)
    np.random.seed(words)
    random.seed(number)
