"""Scores of all nested heads as factors, for operators that never store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from franca_fast.ops import _checks
from franca_fast.ops.prototype_scores import prototype_scores


@dataclass(frozen=True)
class FactoredScores:
    """Scores z[n, k] = scale[k] * <features[n], prototypes[k]> of every head, not multiplied out.

    The clustering operators take it wherever they take logits, and then recompute blocks of scores
    instead of storing them: peak extra memory is O(N + K) instead of O(N K).

    Attributes:
        features: For each head, [N, C_i].
        prototypes: For each head, [K_i, C_i], of the dtype of the features.
        scales: For each head, [K_i], float32 (float64 for float64 features).

    Example:
        >>> import torch, franca_fast as ff
        >>> head = ff.models.NestedPrototypeHead(32, 64, hidden_dim=16, bottleneck_dim=8)
        >>> scores = head(torch.randn(6, 32), factored=True)
        >>> potentials = ff.ops.sinkhorn_potentials(scores, temperature=0.05)
    """

    features: tuple[Tensor, ...]
    prototypes: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]

    @property
    def n_rows(self) -> int:
        """Number of rows N."""
        return self.features[0].shape[0]

    def stored(self, max_rows: int | None = None) -> tuple[Tensor, ...]:
        """The scores multiplied out, [N, K_i] for each head; on request of the first rows only."""
        features = [x[:max_rows] for x in self.features]
        return prototype_scores(features, self.prototypes, scales=self.scales)

    def split(self, sizes: Sequence[int]) -> list[FactoredScores]:
        """Cuts the rows into parts; the prototypes are shared."""
        parts = zip(*(x.split(list(sizes)) for x in self.features), strict=True)
        return [replace(self, features=part) for part in parts]


def lists(name: str, scores: FactoredScores) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The factors as checked lists."""
    features = _checks.matrices_of_heads(f"{name}.features", scores.features)
    prototypes = _checks.matrices_of_heads(f"{name}.prototypes", scores.prototypes)
    _checks.same_rows(f"{name}.features", features)
    _checks.same_columns(f"{name}.prototypes", prototypes, f"{name}.features", features)
    scales = _checks.as_tensors(f"{name}.scales", scores.scales, "a tensor [K_i]")
    _checks.scales(f"{name}.scales", scales, prototypes)
    _checks.same_kind(f"{name}.prototypes", prototypes[0], f"{name}.features", features[0])
    return features, prototypes, scales
