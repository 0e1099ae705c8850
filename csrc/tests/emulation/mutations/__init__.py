"""The defects that mutation_check.py plants, by the test that has to notice them."""

from __future__ import annotations

from ._shared import Mutation
from .attention import VARLEN_ATTENTION
from .clustering import CLUSTERING_LOSS
from .sinkhorn import SINKHORN
from .streamed import STREAMED_CLUSTERING

__all__ = ["BY_TEST", "Mutation"]

# Kernel sources and defects of each test.
BY_TEST = {
    "sinkhorn": (("sinkhorn.cu", "merges.cu"), SINKHORN),
    "clustering": (("clustering_cross_entropy.cu", "merges.cu"), CLUSTERING_LOSS),
    "streamed": (("streamed_clustering.cu", "streamed_loss.cu", "merges.cu"), STREAMED_CLUSTERING),
    "attention": (("varlen_attention.cu",), VARLEN_ATTENTION),
}
