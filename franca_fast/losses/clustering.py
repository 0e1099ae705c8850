"""What the clustering losses share: targets, balanced (Sinkhorn-Knopp) or centred, and a centre."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from franca_fast.backends.contracts import ScoresLike
from franca_fast.errors import InputError
from franca_fast.ops import ClusteringTargets, centered_targets, sinkhorn_targets

CENTERINGS = ("sinkhorn_knopp", "centering")


class ClusteringLoss(nn.Module):
    """What the image-level and the patch-level loss share: how targets are made.

    Args:
        out_dims: Number of prototypes of each nested head.
        student_temp: Student temperature t.
        centering: "sinkhorn_knopp" (Franca) balances the assignments over the batch; "centering"
            (DINO) subtracts a moving average of the teacher's scores.
        center_momentum: Momentum of that average.
        n_iterations: Sinkhorn-Knopp iterations.

    Attributes:
        center: Moving average of the teacher's scores of all heads, [sum K]; only with "centering".
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
        teacher_logits: ScoresLike,
        teacher_temp: float,
        *,
        n_valid: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> ClusteringTargets:
        """Assignments of teacher rows to prototypes, balanced over all ranks of `group`.

        Args:
            teacher_logits: For each head, z [N, K_i], or `Scores`.
            teacher_temp: Teacher temperature T.
            n_valid: Rows from this one on are padding.
            group: Process group over which the rows are spread.
        """
        if self.center is None:
            return sinkhorn_targets(
                teacher_logits, teacher_temp, self.n_iterations, n_valid=n_valid, group=group
            )
        center = self.center.split(self.out_dims)
        return centered_targets(teacher_logits, teacher_temp, center, n_valid=n_valid, group=group)

    @torch.no_grad()
    def update_center(self, targets: ClusteringTargets) -> None:
        """Moves the centre towards the batch of these targets; call it for steps that are kept."""
        if self.center is not None and targets.mean_scores is not None:
            mean = torch.cat(targets.mean_scores)
            self.center.lerp_(mean.to(self.center.dtype), 1.0 - self.center_momentum)
