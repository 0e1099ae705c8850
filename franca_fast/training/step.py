"""One training step: a function of the run's state, a batch and the step's number."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from franca_fast.models import shared_prototypes
from franca_fast.ops import ClusteringTargets, Scores
from franca_fast.training.distributed.parallelize import Layout, local_tensors
from franca_fast.training.optimizer import (
    LocalOptimizer,
    apply_step,
    clip_factors,
    set_schedule,
    squared_norms,
)
from franca_fast.training.precision import Precision
from franca_fast.training.reporting.diagnostics import assignment_statistics
from franca_fast.training.schedules import StepValues
from franca_fast.training.student_teacher import Losses, StudentTeacher

if TYPE_CHECKING:
    from franca_fast.data import Batch


@dataclass
class StepOutput:
    """What a step did; tensors stay on the device until somebody reads them.

    All are the same on all ranks: losses are means over the ranks and micro-batches.

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
        model: student, teacher and losses, on the device, where `layout` has put them.
        optimizer: over the student.
        precision: of the forward and backward pass.
        layout: how the networks lie over the ranks.
        clip_grad: largest gradient norm of each module; 0 does not clip.
        seed: of the run.
    """

    def __init__(
        self,
        model: StudentTeacher,
        optimizer: LocalOptimizer,
        precision: Precision,
        layout: Layout,
        *,
        clip_grad: float,
        seed: int,
    ) -> None:
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.scaler = precision.scaler(layout.group)
        self._layout = layout
        self._clip_grad, self._seed = clip_grad, seed
        self._teacher = local_tensors(model.teacher.named_parameters())
        self._student = local_tensors(model.student.named_parameters())

    def __call__(
        self, step: int, batches: Sequence[Batch], values: StepValues, *, diagnose: bool = False
    ) -> StepOutput:
        """Trains on the micro-batches of a step.

        The gradient is the mean over them; each has assignments of its own, balanced over all
        ranks. A non-finite loss or gradient, on any rank, changes neither parameters, optimizer,
        teacher nor centres. That is decided on the device, so the host need not wait for it.

        Args:
            step: number of the step, from 0; with the seed it fixes every random draw.
            batches: on the model's device.
            values: of the schedules at this step.
            diagnose: also look at the assignments, those of the last micro-batch.
        """
        set_schedule(self.optimizer.adamw, values)
        self.optimizer.zero_grad()
        targets = []
        parts: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        # One pass has nothing to share, and shards are not to be kept.
        several = len(batches) > 1 and self._layout.n_shards == 1
        with shared_prototypes() if several else nullcontext():
            for i, batch in enumerate(batches):
                seed_step(self._seed, step, self._layout.world.rank, i)
                losses = self._backward(batch, values.teacher_temp, len(batches))
                if diagnose and i == len(batches) - 1:
                    statistics = self._statistics(losses.targets)
                # A sharded teacher's prototypes, and so the scores, are no more after this.
                self._layout.reshard(self.model.teacher)
                nothing = Scores(())
                targets.append({n: t._replace(scores=nothing) for n, t in losses.targets.items()})
                for name, part in losses.parts().items():
                    part = part / len(batches)
                    parts[name] = parts[name] + part if name in parts else part
        self._layout.finish_backward(self.model.student)
        self.optimizer.take_gradients()
        self.scaler.unscale_(self.optimizer.adamw)
        averaged, squares = self._layout.all_reduce(
            torch.cat([part.flatten() for part in parts.values()]), squared_norms(self.optimizer)
        )
        norms = squares.sqrt()
        finite = torch.cat([averaged, norms]).isfinite().all()
        apply_step(
            self.optimizer,
            self._student,
            self._teacher,
            clip=clip_factors(norms, self._clip_grad),
            momentum=values.momentum,
            finite=finite,
        )
        self.scaler.update()
        self.model.update_centers(targets, finite)
        terms = _unflatten(averaged, parts)
        return StepOutput(
            loss=terms.pop("total"),
            terms=terms,
            norms=dict(zip(self.optimizer.modules, norms.unbind(), strict=True)),
            finite=finite,
            statistics=statistics,
        )

    def _backward(self, batch: Batch, teacher_temp: float, n_batches: int) -> Losses:
        """Adds the gradients of a micro-batch."""
        with self.precision.autocast():
            losses = self.model(batch, teacher_temp, self._layout.group)
        self.scaler.scale(losses.total / n_batches).backward()
        return losses

    def _statistics(self, targets: Mapping[str, ClusteringTargets]) -> dict[str, Tensor]:
        return {
            f"{name}_{key}": value
            for name, of_loss in targets.items()
            for key, value in assignment_statistics(of_loss, self._layout.group).items()
        }


def seed_step(seed: int, step: int, rank: int = 0, micro_batch: int = 0) -> None:
    """Seeds all global generators, so that a step draws the same after a resume.

    Ranks and micro-batches draw different numbers: stochastic depth leaves out images of each.
    """
    sequence = np.random.SeedSequence((seed, step, rank, micro_batch))
    words = sequence.generate_state(2, np.uint32)
    number = int(words[0]) << 32 | int(words[1])
    torch.manual_seed(number)
    np.random.seed(words)
    random.seed(number)


def _unflatten(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pieces = flat.split([part.numel() for part in like.values()])
    return {
        name: piece.view_as(part) for piece, (name, part) in zip(pieces, like.items(), strict=True)
    }
