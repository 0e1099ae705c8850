"""The operators: checked, differentiable, usable under torch.compile, autocast and FSDP.

Each file holds one operator: its schema, checks, fake (shape inference), autograd and
documentation. The implementations are in `franca_fast.backends`.
"""

from __future__ import annotations

from franca_fast.ops.clustering_cross_entropy import clustering_cross_entropy
from franca_fast.ops.factored_scores import FactoredScores
from franca_fast.ops.prototype_scores import prototype_scores
from franca_fast.ops.sinkhorn import (
    SinkhornPotentials,
    row_potentials,
    sinkhorn_knopp,
    sinkhorn_potentials,
)
from franca_fast.ops.split_rows import split_rows
from franca_fast.ops.varlen_attention import varlen_attention, varlen_attention_qkv

__all__ = [
    "FactoredScores",
    "SinkhornPotentials",
    "clustering_cross_entropy",
    "prototype_scores",
    "row_potentials",
    "sinkhorn_knopp",
    "sinkhorn_potentials",
    "split_rows",
    "varlen_attention",
    "varlen_attention_qkv",
]
