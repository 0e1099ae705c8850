"""The defects that mutation_check.py plants, by the test that has to notice them."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One planted defect: `mutant` instead of the first `original` after `after`.

    An expression ends nowhere in particular; what ends with a semicolon is taken as a statement.
    """

    file: str
    original: str
    mutant: str
    after: str = ""


LOGITS = "logits.cuh"
WARP = "primitives/warp.cuh"
KERNELS = "sinkhorn_kernels.cuh"
CLUSTER = "sinkhorn_cluster.cuh"
CLUSTERING = "clustering_kernels.cuh"
MERGES = "merges.cu"
TILE = "score_tile.cuh"
STREAMED = "streamed_kernels.cuh"
LOSS = "streamed_loss.cuh"
BARRIER = "block_barrier();"
CLUSTER_BARRIER = "cluster_barrier();"

_SHARED = [
    Mutation(WARP, "fmaxf(value, shuffle_xor(value, mask))", "fmaxf(value, shuffle_xor(value, 1))"),
    Mutation(WARP, "value += shuffle_xor(value, mask);", "value += shuffle_xor(value, mask / 2);"),
    Mutation(LOGITS, "vectors && left >= kPack<T>", "vectors", "uint4 load_pack"),
    Mutation(LOGITS, "i < left ? to_float(from[i]) : 0.0f", "to_float(from[i])"),
    Mutation(LOGITS, "total *= fast_exp(maximum - shift(new_maximum));", "total *= 1.0f;"),
    Mutation(LOGITS, "fast_exp(x[i] - offset)", "fast_exp(x[i])"),
    Mutation(LOGITS, "(slice - heads.head[h].first_slice) * kSliceColumns", "0 * slice"),
    Mutation(LOGITS, "fmaf(z, scale.high, potential)", "fmaf(z, scale.high, 0.9f * potential)"),
]

SINKHORN = [
    *_SHARED,
    Mutation(LOGITS, "maximum == -kInfinity ? 0.0f : maximum", "maximum"),
    Mutation(LOGITS, "i < columns ? potential[i] : -kInfinity", "i < columns ? potential[i] : 0"),
    Mutation(
        KERNELS,
        "n + r < end ? exponent(z[r][c], scale, 0.0f) : -kInfinity",
        "exponent(z[r][c], scale, 0.0f)",
    ),
    Mutation(KERNELS, "n + r < end ? row[n + r] : -kInfinity", "row[smaller(n + r, end - 1)]"),
    Mutation(KERNELS, BARRIER, ";", "row_partials_kernel("),
    Mutation(KERNELS, BARRIER, ";", "iteration_kernel("),
    Mutation(KERNELS, BARRIER, ";", "assignments_kernel("),
    Mutation(MERGES, "n < n_valid ? -(sum.maximum + logf(sum.total)) : -kInfinity", "-sum.maximum"),
    Mutation(KERNELS, "begin + warp_index()", "begin + lane_index()", "write_row_partials("),
    Mutation(KERNELS, "potential[c] -= logf(mass[c]);", "potential[c] += logf(mass[c]);"),
    Mutation(KERNELS, "exists ? potential[c] : -kInfinity", "potential[c]"),
    Mutation(
        KERNELS,
        "n < n_valid && column + c < slice.columns",
        "column + c < slice.columns",
        "assignments_kernel(",
    ),
    Mutation(MERGES, "partial[group * heads.n_columns + k]", "partial[k]"),
    Mutation(KERNELS, "blockIdx.y * heads.n_columns", "0", "column_mass_kernel("),
    Mutation(CLUSTER, "n < n_valid", "true", "const float factor ="),
    Mutation(
        CLUSTER,
        "wait_for_copies<kStages<T> - 2>();",
        "wait_for_copies<kStages<T> - 1>();",
    ),
    Mutation(CLUSTER, "(ahead % kStages<T>)", "(step % kStages<T>)"),
    Mutation(CLUSTER, "(step % 2) * plan.cluster * warps", "0 * warps"),
    Mutation(CLUSTER, "exchange + member * warps + warp_index()", "exchange + warp_index()"),
    Mutation(CLUSTER, "team * team_size + lane_index()", "lane_index()", "store_to_peer("),
    Mutation(CLUSTER, CLUSTER_BARRIER, ";", "One barrier for each row"),
    Mutation(
        CLUSTER,
        "k < head.columns ? prototype[head.first_column + k] : -kInfinity",
        "k < head.columns ? prototype[head.first_column + k] : 0.0f",
    ),
    Mutation(CLUSTER, "fmaf(e[i], factor, mass[i])", "mass[i] + e[i]"),
    Mutation(CLUSTER, "(n_valid + groups - 1) / groups", "n_valid / groups"),
    Mutation(CLUSTER, "group * threads + threadIdx.x", "threads + threadIdx.x", "n = n_valid +"),
]

CLUSTERING_LOSS = [
    *_SHARED,
    Mutation(CLUSTERING, "known ? n : 0", "n"),
    Mutation(CLUSTERING, "p.row[h * p.teacher.n_rows + n]", "p.row[n]"),
    Mutation(CLUSTERING, "m * p.n_targets + target", "m * p.n_targets"),
    Mutation(CLUSTERING, "offset + c < slice.columns ? x : -kInfinity", "x"),
    Mutation(CLUSTERING, BARRIER, ";", "clustering_forward_kernel("),
    Mutation(MERGES, BARRIER, ";", "sum_rows_kernel("),
    Mutation(CLUSTERING, BARRIER, ";", "clustering_backward_kernel("),
    Mutation(CLUSTERING, "begin + warp_index()", "begin + 1 + warp_index()"),
    Mutation(CLUSTERING, "agreement = warp_sum(agreement);", "agreement += 0;", "sum.merge_warp()"),
    Mutation(MERGES, "targets * logsumexp", "logsumexp"),
    Mutation(CLUSTERING, "factor * static_cast<float>(p.n_targets)", "factor"),
    Mutation(MERGES, "w < kWarps", "w < kWarps - 1"),
]

STREAMED_CLUSTERING = [
    Mutation(TILE, "row * kPacksPerRow", "row * 4", "int place("),
    Mutation(TILE, "lane / 16 * 8 + lane % 8", "lane % 8", "multiply_step("),
    Mutation(TILE, "2 * k + lane / 16", "2 * k", "multiply_step("),
    Mutation(TILE, "j % 2 * 2 + 1", "j % 2 * 2", "multiply_step("),
    Mutation(TILE, "n < 0 ? 0 : matrix.columns - element", "n < 0 ? 0 : kDepth"),
    Mutation(TILE, "first_column + c < n_columns", "true"),
    Mutation(TILE, BARRIER, ";", "The tile before this one may still be read"),
    Mutation(TILE, BARRIER, ";", "wait_for_copies<kTileStages - 2>()"),
    Mutation(
        TILE,
        "wait_for_copies<kTileStages - 2>();",
        "wait_for_copies<kTileStages - 1>();",
    ),
    Mutation(TILE, "(x.columns + kDepth - 1) / kDepth", "x.columns / kDepth"),
    Mutation(TILE, "step + kTileStages - 1", "step + kTileStages"),
    Mutation(STREAMED, "tile % kTilesPerSlice * kTileColumns", "0 * tile"),
    Mutation(STREAMED, BARRIER, ";", "scale[c] = 1.0f"),
    Mutation(STREAMED, BARRIER, ";", "make_pair<T>(score"),
    Mutation(STREAMED, "tile_row(r) < left", "true", "add_tile_columns("),
    Mutation(STREAMED, "tile_row(r) < left", "tile_row(r) <= left", "add_tile_mass("),
    Mutation(STREAMED, "warp_down() == 1 && lane_index() < 4", "false"),
    Mutation(STREAMED, "shuffle_xor(sums[c].total, mask)", "shuffle_xor(sums[c].total, 4)"),
    Mutation(STREAMED, "shuffle_xor(rows[r].agreement, mask)", "shuffle_xor(0.0f, mask)"),
    Mutation(STREAMED, "w < kWarpsAcross", "w < kWarpsAcross - 1"),
    Mutation(STREAMED, BARRIER, ";", "shared[tile_row(r) * kWarpsAcross"),
    Mutation(STREAMED, BARRIER, ";", "warp_down() == 1"),
    Mutation(STREAMED, "k < scores.head[columns.head].columns", "true"),
    Mutation(STREAMED, "-kInfinity", "0.0f", "load_columns(potential, potentials"),
    Mutation(LOSS, "(first_row + r) * p.n_targets + target", "(first_row + r) * p.n_targets"),
    Mutation(LOSS, "p.row[columns.head * p.n_teacher_rows + n]", "p.row[n]"),
    Mutation(LOSS, "first + tile_column(c) < p.scores.head[slice.head].columns", "true"),
    Mutation(LOSS, "static_cast<float>(p.n_targets) * softmax", "softmax"),
    Mutation(LOSS, "ds * scale[c]", "ds", "products[c] ="),
    Mutation(LOSS, "product", "products[c]", "fmaf(ds, "),
]

# Kernel sources and defects of each test.
BY_TEST = {
    "sinkhorn": (("sinkhorn.cu", "merges.cu"), SINKHORN),
    "clustering": (("clustering_cross_entropy.cu", "merges.cu"), CLUSTERING_LOSS),
    "streamed": (("streamed_clustering.cu", "merges.cu"), STREAMED_CLUSTERING),
}
