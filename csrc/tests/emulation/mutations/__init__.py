"""The defects that mutation_check.py plants, by the test that has to notice them."""

from __future__ import annotations

from mutations._shared import Mutation
from mutations.adamw import ADAMW
from mutations.attention import VARLEN_ATTENTION
from mutations.clustering import CLUSTERING_LOSS
from mutations.sinkhorn import SINKHORN
from mutations.streamed import STREAMED_CLUSTERING
from mutations.weight_norm import WEIGHT_NORM

__all__ = ["BY_TEST", "Mutation"]

# Kernel sources and defects of each test.
BY_TEST = {
    "sinkhorn": (("sinkhorn.cu", "merges.cu"), SINKHORN),
    "clustering": (("clustering_cross_entropy.cu", "merges.cu"), CLUSTERING_LOSS),
    "streamed": (("streamed_clustering.cu", "streamed_loss.cu", "merges.cu"), STREAMED_CLUSTERING),
    "attention": (("varlen_attention.cu",), VARLEN_ATTENTION),
    "weight_norm": (("weight_norm.cu",), WEIGHT_NORM),
    "adamw": (("adamw_update.cu",), ADAMW),
}
