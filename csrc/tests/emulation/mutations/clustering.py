"""Defects that test_clustering.cpp has to notice."""

from __future__ import annotations

from mutations._shared import BARRIER, MERGES, OF_LOGITS, PARAMETERS, Mutation

CLUSTERING = "clustering_kernels.cuh"

CLUSTERING_LOSS = [
    *OF_LOGITS,
    Mutation(CLUSTERING, "n < 0 ? 0 : n", "n"),
    Mutation(PARAMETERS, "n < n_teacher_rows ? n : -1", "n"),
    Mutation(PARAMETERS, "row[h * n_teacher_rows + n]", "row[n]"),
    Mutation(PARAMETERS, "m * n_targets + p", "m * n_targets"),
    Mutation(CLUSTERING, "smaller(left, kColumnsPerThread)", "kColumnsPerThread", "sum.add("),
    Mutation(CLUSTERING, "slice.columns >= kSliceColumns", "true", "bool is_whole("),
    Mutation(CLUSTERING, "teacher.vectors", "true", "bool is_whole("),
    Mutation(CLUSTERING, "slice.begin + offset", "offset", "met[i][t].load("),
    Mutation(CLUSTERING, "targets.row[t]", "targets.row[0]"),
    Mutation(CLUSTERING, "targets.offset[t]", "targets.offset[0]"),
    Mutation(CLUSTERING, BARRIER, ";", "clustering_forward_kernel("),
    Mutation(MERGES, BARRIER, ";", "sum_rows_kernel("),
    Mutation(CLUSTERING, BARRIER, ";", "clustering_backward_kernel("),
    Mutation(CLUSTERING, "begin + warp_index()", "begin + 1 + warp_index()"),
    Mutation(CLUSTERING, "next.load(p, h, m + kWarps);", "next.load(p, h, m);"),
    Mutation(CLUSTERING, "agreement = warp_sum(agreement);", "agreement += 0;"),
    Mutation(MERGES, "targets * logsumexp", "logsumexp"),
    Mutation(CLUSTERING, "factor * static_cast<float>(p.n_targets)", "factor"),
    Mutation(CLUSTERING, "-factor * q[c]", "-q[c]"),
    Mutation(CLUSTERING, "whole || gradient.vectors", "true"),
    Mutation(MERGES, "w < kWarps", "w < kWarps - 1"),
]
