"""Targets of the clustering losses: balanced (Sinkhorn-Knopp) or centred teacher assignments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.ops import (
    FactoredScores,
    SinkhornPotentials,
    row_potentials,
    sinkhorn_potentials,
)

# Scores of all nested heads: logits [N, K_i], or their factors, which are never multiplied out.
Scores = Sequence[Tensor] | FactoredScores

CENTERINGS = ("sinkhorn_knopp", "centering")


class ClusteringTargets(NamedTuple):
    """Teacher assignments Q = exp(z/T + a + b) of every nested head, never written out.

    Attributes:
        logits: Teacher logits z, for each head [N, K_i], or their factors.
        potentials: a and b.
        temperature: T.
        mean_logits: Mean of the valid rows of z over all ranks, for each head [K_i]; None for
            Sinkhorn-Knopp targets, which keep no centre.
    """

    logits: tuple[Tensor, ...] | FactoredScores
    potentials: SinkhornPotentials
    temperature: float
    mean_logits: tuple[Tensor, ...] | None = None


class ClusteringLoss(nn.Module):
    """What the image-level and the patch-level loss share: how targets are made.

    Args:
        out_dims: Number of prototypes of each nested head.
        student_temp: Student temperature t.
        centering: "sinkhorn_knopp" (Franca) balances the assignments over the batch; "centering"
            (DINO) subtracts a moving average of the teacher logits.
        center_momentum: Momentum of that average.
        n_iterations: Sinkhorn-Knopp iterations.

    Attributes:
        center: Moving average of the teacher logits of all heads, [sum K]; only with "centering".
    """

    center: Tensor | None

    def __init__(
        self,
        out_dims: Sequence[int],
        *,
        student_temp: float = 0.1,
        centering: str = "sinkhorn_knopp",
        center_momentum: float = 0.9,
        n_iterations: int = 3,
    ) -> None:
        super().__init__()
        if centering not in CENTERINGS:
            raise InputError(f"centering: {centering!r}; accepted: {' or '.join(CENTERINGS)}")
        self.out_dims = tuple(out_dims)
        self.student_temp, self.centering = student_temp, centering
        self.center_momentum, self.n_iterations = center_momentum, n_iterations
        center = torch.zeros(sum(self.out_dims)) if centering == "centering" else None
        self.register_buffer("center", center)

    @torch.no_grad()
    def targets(
        self,
        teacher_logits: Scores,
        teacher_temp: float,
        *,
        n_valid: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> ClusteringTargets:
        """Assignments of teacher rows to prototypes, balanced over all ranks of `group`.

        Args:
            teacher_logits: For each head, z [N, K_i], or their factors.
            teacher_temp: Teacher temperature T.
            n_valid: Rows from this one on are padding.
            group: Process group over which the rows are spread.
        """
        logits: tuple[Tensor, ...] | FactoredScores = (
            teacher_logits if isinstance(teacher_logits, FactoredScores) else tuple(teacher_logits)
        )
        if self.center is None:
            potentials = sinkhorn_potentials(
                logits, teacher_temp, self.n_iterations, n_valid=n_valid, group=group
            )
            return ClusteringTargets(logits, potentials, teacher_temp)
        prototype = (-self.center / teacher_temp).split(self.out_dims)
        potentials = row_potentials(logits, teacher_temp, prototype, n_valid=n_valid)
        mean = _mean_rows(logits, n_valid, group)
        return ClusteringTargets(logits, potentials, teacher_temp, mean)

    @torch.no_grad()
    def update_center(self, targets: ClusteringTargets) -> None:
        """Moves the centre towards the batch of these targets; call it for steps that are kept."""
        if self.center is not None and targets.mean_logits is not None:
            mean = torch.cat(targets.mean_logits)
            self.center.lerp_(mean.to(self.center.dtype), 1.0 - self.center_momentum)


def n_rows(scores: Scores) -> int:
    """Number of rows of the scores of every head."""
    return scores.n_rows if isinstance(scores, FactoredScores) else scores[0].shape[0]


def _mean_rows(
    scores: Scores, n_valid: int | None, group: dist.ProcessGroup | None
) -> tuple[Tensor, ...]:
    count = n_rows(scores) if n_valid is None else n_valid
    rows = scores.features if isinstance(scores, FactoredScores) else scores
    sums = [z[:count].sum(dim=0, dtype=torch.float32) for z in rows]
    if isinstance(scores, FactoredScores):
        # The scores are linear in the features, and so are their sums.
        factors = zip(sums, scores.prototypes, scores.scales, strict=True)
        sums = [scale * (v.float() @ x) for x, v, scale in factors]
    buffer = torch.cat([*sums, sums[0].new_full((1,), float(count))])
    if group is not None:
        dist.all_reduce(buffer, group=group)
    mean = buffer[:-1] / buffer[-1].clamp(min=1.0)
    return mean.split([z.shape[0] for z in sums])
