"""Defects that test_sinkhorn.cpp has to notice."""

from __future__ import annotations

from mutations._shared import (
    BARRIER,
    CLUSTER_BARRIER,
    LAUNCH,
    LOGITS,
    MERGES,
    OF_LOGITS,
    Mutation,
)

SINKHORN_HOST = "sinkhorn.cu"
KERNELS = "sinkhorn_kernels.cuh"
CLUSTER = "sinkhorn_cluster.cuh"
FEW_ROWS = "sinkhorn_few_rows.cuh"

SINKHORN = [
    *OF_LOGITS,
    Mutation(LOGITS, "maximum == -kInfinity ? 0.0f : maximum", "maximum"),
    Mutation(LOGITS, "i < columns ? potential[i] : -kInfinity", "i < columns ? potential[i] : 0"),
    Mutation(LOGITS, "fast_exp(x[i] - offset)", "fast_exp(x[i])"),
    Mutation(KERNELS, "n + r < end ? row[n + r] : -kInfinity", "row[smaller(n + r, end - 1)]"),
    Mutation(KERNELS, BARRIER, ";", "row_partials_kernel("),
    Mutation(KERNELS, "total >= kSmallestSum && total <= kLargestSum", "true"),
    Mutation(KERNELS, "begin + warp_index()", "begin + lane_index()", "row_partials_kernel("),
    Mutation(LOGITS, "heads.head[h + 1].first_slice", "heads.n_slices", "end_of_slices("),
    Mutation(MERGES, "out.prototype[k] -= logf(sum);", "out.prototype[k] += logf(sum);"),
    Mutation(MERGES, "-(sum.maximum + logf(sum.total))", "-sum.maximum"),
    Mutation(MERGES, "n < n_valid ? sum.maximum + logf(sum.total) : kInfinity", "sum.maximum"),
    Mutation(MERGES, "from[group * parts.stride[h]]", "from[0 * group]"),
    # What the driver is told and asked.
    Mutation(LAUNCH, "raise();", ";", "found->second >= value"),
    Mutation(LAUNCH, "found != values_.end()", "false"),
    Mutation(KERNELS, BARRIER, ";", "assignments_kernel("),
    Mutation(
        KERNELS,
        "n < n_valid && column + c < slice.columns",
        "column + c < slice.columns",
        "assignments_kernel(",
    ),
    Mutation(KERNELS, "blockIdx.y * heads.n_columns", "0", "column_mass_kernel("),
    # Rows on chip, over the blocks of a cluster.
    Mutation(CLUSTER, "n < p.n_valid ? result.factor : 0.0f", "result.factor"),
    Mutation(
        CLUSTER,
        "wait_for_copies<kStages<T> - 2>();",
        "wait_for_copies<kStages<T> - 1>();",
    ),
    Mutation(CLUSTER, "(i + kStages<T> - 1) % kStages<T>", "i % kStages<T>"),
    Mutation(CLUSTER, "count >= kPack<T>", "true", "const int bytes ="),
    Mutation(CLUSTER, "(kPacks - 1) * kBetween + kPack<T>", "(kPacks - 1) * kBetween", "bool all"),
    Mutation(CLUSTER, "column < left ? first[column] : -kInfinity", "first[0 * column]"),
    Mutation(CLUSTER, "fmaf(e[c], factor, mass[c])", "mass[c] + e[c]"),
    Mutation(CLUSTER, "total >= kSmallestSum && total <= kLargestSum", "true"),
    Mutation(CLUSTER, "shift - logf(total)", "-logf(total)"),
    Mutation(CLUSTER, "count % 2 * (kLargestCluster * warps)", "0 * (kLargestCluster * warps)"),
    Mutation(CLUSTER, "barriers + count % 2", "barriers", "ArrivalBarrier* barrier ="),
    Mutation(CLUSTER, "size * sizeof(float)", "(size - 1) * sizeof(float)"),
    Mutation(CLUSTER, "buffer + member * warps + warp_index()", "buffer + warp_index()"),
    Mutation(CLUSTER, "first_rank + lane_index()", "lane_index()", "send_to_peer("),
    Mutation(CLUSTER, "wait_for_arrivals(barrier, count / 2);", ";"),
    Mutation(CLUSTER, "count / 2", "count", "wait_for_arrivals("),
    Mutation(CLUSTER, CLUSTER_BARRIER, ";", "count = 0;"),
    Mutation(CLUSTER, CLUSTER_BARRIER, ";", "void end()"),
    Mutation(CLUSTER, "count = 0;", ";", "void begin("),
    Mutation(CLUSTER, "(step + 1) * n_clusters - 1", "step * n_clusters"),
    Mutation(CLUSTER, "cluster - p.plan.cluster_of(p.plan.first_step[h])", "cluster"),
    Mutation(CLUSTER, "i / padding * p.heads.n_rows", "0 * i"),
    Mutation(SINKHORN_HOST, "clusters * plan.teams(h)", "plan.teams(h)"),
    # Few rows.
    Mutation(FEW_ROWS, "first + r < rows.end", "true", "shift(largest[c])"),
    Mutation(FEW_ROWS, "first + r < rows.end ? row[first + r] : -kInfinity", "row[first + r]"),
    Mutation(FEW_ROWS, BARRIER, ";", "make_float2(largest[c], total[c]);"),
    Mutation(FEW_ROWS, BARRIER, ";", ".x = mass[c];"),
    Mutation(FEW_ROWS, BARRIER, ";", "shared.row_sums[warp_index()]"),
    Mutation(FEW_ROWS, BARRIER, ";", "row[n] = -("),
    Mutation(FEW_ROWS, BARRIER, ";", "thread] = potential[c];"),
    Mutation(FEW_ROWS, "grid_barrier();", ";"),
    Mutation(FEW_ROWS, "upper ? sums[i] : sums[i + 1]", "sums[i]"),
    Mutation(FEW_ROWS, "shuffle_xor(given.total, step)", "shuffle_xor(given.total, 1)"),
    Mutation(FEW_ROWS, "shuffle_xor(sums[0].total, step)", "shuffle_xor(sums[0].total, 8)"),
    Mutation(FEW_ROWS, "p.partial[i % 2]", "p.partial[0]", "write_slice_sums("),
    Mutation(FEW_ROWS, "wait_for_copies(shared_batches - 1 - b);", ";"),
    Mutation(LOGITS, "fmaf(z, scale.high, potential)", "z * scale.high", "float exponent("),
    Mutation(LOGITS, "fmaf(z, scale.high, potential)", "z * scale.high", "float exponent_of("),
    Mutation(FEW_ROWS, "shared_batches * kBatchRows", "0 * kBatchRows", "load(held, "),
    Mutation(FEW_ROWS, "offset + c >= slice.columns", "false"),
    Mutation(FEW_ROWS, "n / share * kWarps + w", "w"),
    Mutation(FEW_ROWS, "first - rows.begin + lane_index()", "first + lane_index()"),
    Mutation(FEW_ROWS, "(row * Columns<T>::kPacks + pack) * kFewRowsThreads", "pack * 8"),
    Mutation(SINKHORN_HOST, "p.first_iteration = static_cast<int>(i);", ";"),
    Mutation(SINKHORN_HOST, "shape.cooperative = true;", ";"),
]
