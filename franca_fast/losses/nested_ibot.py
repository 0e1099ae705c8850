"""The patch-level loss: nested clustering of masked patch tokens."""

from __future__ import annotations

from torch import Tensor

from franca_fast.backends.contracts import ScoresLike
from franca_fast.errors import InputError
from franca_fast.losses.clustering import ClusteringLoss
from franca_fast.ops import ClusteringTargets, clustering_cross_entropy


class NestedIBOTLoss(ClusteringLoss):
    """Cross-entropy between masked student patches and the teacher's view of the same patches.

    For each nested head, over the M masked patches of all global crops,

        loss = sum_m w[m] * (-sum_k Q[m, k] log softmax(student[m] / t)[k]) / n_crops

    with w[m] = 1 / (masked patches of that crop) (iBOT, arXiv 2111.07832; DINOv2).

    Example:
        >>> import torch, franca_fast as ff
        >>> loss = ff.losses.NestedIBOTLoss([8])
        >>> targets = loss.targets([torch.randn(3, 8)], 0.05)
        >>> per_head = loss([torch.randn(3, 8)], targets, torch.tensor([1.0, 0.5, 0.5]), n_crops=4)
    """

    def forward(
        self,
        student_logits: ScoresLike,
        targets: ClusteringTargets,
        mask_weights: Tensor,
        n_crops: int,
        *,
        overwrite_student: bool = False,
    ) -> Tensor:
        """Loss of each head, [number of heads], float32.

        Args:
            student_logits: For each head [M, K_i], the masked patches only; or `Scores`.
            targets: Of the same patches of the teacher.
            mask_weights: w, [M].
            n_crops: Global crops in the batch, masked or not.
            overwrite_student: As in `clustering_cross_entropy`.
        """
        if n_crops < 1:
            raise InputError(f"n_crops: {n_crops}; accepted: an integer >= 1")
        return clustering_cross_entropy(
            student_logits,
            targets,
            student_temperature=self.student_temp,
            weights=mask_weights / n_crops,
            overwrite_student=overwrite_student,
        )
