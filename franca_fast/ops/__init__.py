"""The operators: checked, differentiable, usable under torch.compile, autocast and FSDP.

Each file holds one operator: its schema, checks, fake (shape inference), autograd and
documentation. The implementations are in `franca_fast.backends`.
"""

from __future__ import annotations

from franca_fast.backends.contracts import Scores
from franca_fast.errors import renamed
from franca_fast.ops.adamw_update import adamw_update
from franca_fast.ops.clustering_cross_entropy import clustering_cross_entropy
from franca_fast.ops.prototype_scores import prototype_scores
from franca_fast.ops.sinkhorn import SinkhornPotentials, sinkhorn_knopp, sinkhorn_potentials
from franca_fast.ops.split_rows import split_rows
from franca_fast.ops.swiglu import swiglu
from franca_fast.ops.targets import ClusteringTargets, centered_targets, sinkhorn_targets
from franca_fast.ops.varlen_attention import varlen_attention, varlen_attention_qkv
from franca_fast.ops.weight_norm_scores import (
    normalized_prototypes,
    streamed_prototypes,
    weight_norm_scores,
)

__all__ = [
    "ClusteringTargets",
    "Scores",
    "SinkhornPotentials",
    "adamw_update",
    "centered_targets",
    "clustering_cross_entropy",
    "normalized_prototypes",
    "prototype_scores",
    "sinkhorn_knopp",
    "sinkhorn_potentials",
    "sinkhorn_targets",
    "split_rows",
    "streamed_prototypes",
    "swiglu",
    "varlen_attention",
    "varlen_attention_qkv",
    "weight_norm_scores",
]

__getattr__ = renamed(
    __name__,
    {
        "FactoredScores": "franca_fast.ops.Scores(features, prototypes, scales)",
        "row_potentials": "franca_fast.ops.centered_targets(logits, temperature, center)",
    },
)
