"""The defects that mutation_check.py plants, by the test that has to notice them."""

from __future__ import annotations

from csrc.tests.emulation.mutations._shared import Mutation
from csrc.tests.emulation.mutations.attention import VARLEN_ATTENTION
from csrc.tests.emulation.mutations.clustering import CLUSTERING_LOSS
from csrc.tests.emulation.mutations.sinkhorn import SINKHORN
from csrc.tests.emulation.mutations.streamed import STREAMED_CLUSTERING

__all__ = ["BY_TEST", "Mutation"]

# Kernel sources and defects of each test.
BY_TEST = {
    "sinkhorn": (("sinkhorn.cu", "merges.cu"), SINKHORN),
    "clustering": (("clustering_cross_entropy.cu", "merges.cu"), CLUSTERING_LOSS),
    "streamed": (("streamed_clustering.cu", "streamed_loss.cu", "merges.cu"), STREAMED_CLUSTERING),
    "attention": (("varlen_attention.cu",), VARLEN_ATTENTION),
}
