"""The image-level loss: nested clustering of CLS tokens across the crops of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast.backends.contracts import ScoresLike
from franca_fast.errors import InputError
from franca_fast.losses.clustering import ClusteringLoss
from franca_fast.ops import ClusteringTargets, Scores, clustering_cross_entropy


class NestedDINOLoss(ClusteringLoss):
    """Cross-entropy between student crops and teacher assignments of other crops of the image.

    With B images, two global crops and L local crops, for each nested head

        H(r, s) = -sum_k Q[r, k] log softmax(student[s] / t)[k]
        global  = mean over the 2B global rows s of H(the other global crop, s)
        local   = sum over the 2L pairs (teacher crop, local crop) of the mean over images of H
        loss    = (2 * global + local) / (2 + 2 L)

    summed over the heads with equal weights (arXiv 2507.14137; DINOv2, arXiv 2304.07193).

    Example:
        >>> import torch, franca_fast as ff
        >>> loss = ff.losses.NestedDINOLoss([8, 32])
        >>> teacher, student = ([torch.randn(4, 8), torch.randn(4, 32)] for _ in range(2))
        >>> parts = loss(student, None, loss.targets(teacher, 0.05))  # 2 crops of 2 images
        >>> total = parts["global"].sum() + parts["local"].sum()
    """

    def forward(
        self,
        student_global: ScoresLike,
        student_local: ScoresLike | None,
        targets: ClusteringTargets,
        *,
        overwrite_student: bool = False,
    ) -> dict[str, Tensor]:
        """Loss of each head, already weighted: the total is the sum of all entries.

        Args:
            student_global: For each head [2B, K_i], crop 1 of all images, then crop 2; or `Scores`.
            student_local: For each head [L * B, K_i], crop by crop; None when L = 0.
            targets: Of the teacher's [2B] rows, in the order of `student_global`.
            overwrite_student: As in `clustering_cross_entropy`.

        Returns:
            "global" and "local", each [number of heads], float32.
        """
        rows, teacher_rows = Scores.of(student_global).n_rows, targets.scores.n_rows
        if rows < 2 or rows % 2 or teacher_rows != rows:
            raise InputError(
                f"student_global: {rows} rows with {teacher_rows} teacher rows; "
                f"accepted: two crops of every image, the same number of rows in both"
            )
        n_images, device = rows // 2, targets.potentials.row[0].device
        images = torch.arange(n_images, device=device)
        n_local = 0 if student_local is None else _n_crops(student_local, n_images)
        n_terms = 2 + 2 * n_local
        other_crop = torch.cat([images + n_images, images]).unsqueeze(1)
        parts = {
            "global": self._cross_entropy(
                student_global, targets, other_crop, 2.0 / (n_terms * rows), overwrite_student
            )
        }
        if student_local is None:
            return {**parts, "local": torch.zeros_like(parts["global"])}
        both_crops = torch.stack([images, images + n_images], dim=1).repeat(n_local, 1)
        weight = 1.0 / (n_terms * n_images)
        local = self._cross_entropy(student_local, targets, both_crops, weight, overwrite_student)
        return {**parts, "local": local}

    def _cross_entropy(
        self,
        student: ScoresLike,
        targets: ClusteringTargets,
        rows: Tensor,
        weight: float,
        overwrite_student: bool,
    ) -> Tensor:
        return clustering_cross_entropy(
            student,
            targets,
            student_temperature=self.student_temp,
            teacher_rows=rows,
            weights=torch.full((rows.shape[0],), weight, device=rows.device),
            overwrite_student=overwrite_student,
        )


def _n_crops(student_local: ScoresLike, n_images: int) -> int:
    rows = Scores.of(student_local).n_rows
    if rows == 0 or rows % n_images:
        raise InputError(
            f"student_local: {rows} rows; accepted: a positive multiple of the {n_images} images"
        )
    return rows // n_images
