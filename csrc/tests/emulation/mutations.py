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
LAUNCH = "primitives/launch.cuh"
PARAMETERS = "loss_parameters.cuh"
SINKHORN_HOST = "sinkhorn.cu"
WARP = "primitives/warp.cuh"
KERNELS = "sinkhorn_kernels.cuh"
CLUSTER = "sinkhorn_cluster.cuh"
FEW_ROWS = "sinkhorn_few_rows.cuh"
CLUSTERING = "clustering_kernels.cuh"
MERGES = "merges.cu"
TILE = "score_tile.cuh"
STREAMED = "streamed_kernels.cuh"
LOSS = "streamed_loss.cuh"
HEADS = "attention_tile.cuh"
FORWARD = "attention_forward.cuh"
BACKWARD = "attention_backward.cuh"
ATTENTION = "varlen_attention.cu"
MATRIX = "primitives/matrix.cuh"
BARRIER = "block_barrier();"
CLUSTER_BARRIER = "cluster_barrier();"

_SHARED = [
    Mutation(LOGITS, "n * matrix.row_bytes", "static_cast<int>(n * matrix.row_bytes)"),
    Mutation(WARP, "fmaxf(value, shuffle_xor(value, mask))", "fmaxf(value, shuffle_xor(value, 1))"),
    Mutation(WARP, "value += shuffle_xor(value, mask);", "value += shuffle_xor(value, mask / 2);"),
    Mutation(LOGITS, "vectors && left >= kPack<T>", "vectors", "uint4 load_pack"),
    Mutation(LOGITS, "i < left ? to_float(from[i]) : 0.0f", "to_float(from[i])"),
    Mutation(LOGITS, "total *= fast_exp(maximum - shift(new_maximum));", "total *= 1.0f;"),
    Mutation(LOGITS, "total *= exp_of<T>(largest - offset, scale);", "total *= 1.0f;"),
    Mutation(LOGITS, "i < count", "true", "largest = larger;"),
    Mutation(LOGITS, "(slice - heads.head[h].first_slice) * kSliceColumns", "0 * slice"),
    Mutation(LOGITS, "fmaf(z, scale.high, potential) + offset", "fmaf(z, scale.high, potential)"),
]

SINKHORN = [
    *_SHARED,
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
    Mutation(FEW_ROWS, "wait(b);", ";"),
    Mutation(FEW_ROWS, "shared_batches * kBatchRows", "0 * kBatchRows", "load(held, "),
    Mutation(FEW_ROWS, "offset + c >= slice.columns", "false"),
    Mutation(FEW_ROWS, "n / share * kWarps + w", "w"),
    Mutation(FEW_ROWS, "first - rows.begin + lane_index()", "first + lane_index()"),
    Mutation(FEW_ROWS, "(row * Columns<T>::kPacks + pack) * kFewRowsThreads", "pack * 8"),
    Mutation(SINKHORN_HOST, "p.first_iteration = static_cast<int>(i);", ";"),
    Mutation(SINKHORN_HOST, "shape.cooperative = true;", ";"),
]

CLUSTERING_LOSS = [
    *_SHARED,
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

STREAMED_CLUSTERING = [
    Mutation(LOGITS, "n * matrix.row_bytes", "static_cast<int>(n * matrix.row_bytes)"),
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
    Mutation(STREAMED, BARRIER, ";", "reinterpret_cast<uint32_t*>(shared)"),
    Mutation(STREAMED, "blockIdx.y % kTilesPerSlice", "0 * blockIdx.y"),
    Mutation(STREAMED, "with_rows ? blockIdx.y : blockIdx.y / kTilesPerSlice", "0 * blockIdx.y"),
    Mutation(STREAMED, "store && with_rows", "false"),
    Mutation(STREAMED, "store && with_rows", "true"),
    Mutation(STREAMED, "partial[n * scores.n_slices + blockIdx.y]", "partial[n * scores.n_slices]"),
    Mutation(LOSS, "scale_partial[blockIdx.x * n_columns + k]", "scale_partial[k]"),
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
    Mutation(STREAMED, "-kInfinity", "0.0f", "potential[c] = !exists"),
    Mutation(PARAMETERS, "row[h * n_teacher_rows + n]", "row[n]"),
    Mutation(LOSS, "p.teacher_row(first_row + r, target)", "p.teacher_row(first_row + r, 0)"),
    Mutation(LOSS, "first + tile_column(c) < p.scores.head[slice.head].columns", "true"),
    Mutation(LOSS, "static_cast<float>(p.n_targets) * softmax", "softmax"),
    Mutation(LOSS, "ds * scale[c]", "ds", "products[c] ="),
    Mutation(LOSS, "product", "products[c]", "fmaf(ds, "),
]

VARLEN_ATTENTION = [
    # Lanes.
    Mutation(WARP, "fmaxf(value, shuffle_xor(value, mask))", "fmaxf(value, shuffle_xor(value, 1))"),
    Mutation(WARP, "value += shuffle_xor(value, mask);", "value += shuffle_xor(value, 1);"),
    Mutation(WARP, "word[i] = upper ? other : word[i];", "word[i] = other;"),
    Mutation(MATRIX, "2 * (lane_index() % 4) + k", "2 * (lane_index() % 4)", "_transposed("),
    Mutation(HEADS, "half * 8 + lane_index() / 4", "half * 8 + lane_index() % 8"),
    Mutation(HEADS, "lane_index() % 4 * 2 + e % 2", "lane_index() % 4 * 2"),
    Mutation(HEADS, "half + 2 * (i % 2)", "half + 2 * (i / 2)"),
    Mutation(HEADS, "lane / 16 * 8 + lane % 8", "lane % 16"),
    Mutation(HEADS, "2 * k + lane / 8 % 2", "2 * k", "multiply("),
    Mutation(HEADS, "first + lane % 16", "first + lane % 8"),
    Mutation(HEADS, "2 * j + lane / 16", "2 * j", "add_weighted("),
    Mutation(HEADS, "shared + warp_index() * kPacks", "shared", "kPacks = D / 16"),
    # Strides, tiles and edges.
    Mutation(HEADS, "row * kHeadPacks<D>", "row * 8", "int head_place("),
    Mutation(HEADS, "row % 8", "row % 16", "int head_place("),
    Mutation(HEADS, "task.head * packed.head_bytes", "0 * packed.head_bytes"),
    Mutation(HEADS, "static_cast<int64_t>(sequence) * run.length", "sequence * kUnit"),
    Mutation(HEADS, "local % run.tasks * warp_count()", "local % run.tasks * kMostWarps"),
    Mutation(
        HEADS, "schedule.run[r + 1].first_task <= number", "schedule.run[r + 1].first_task < number"
    ),
    Mutation(HEADS, "first + row < task.length", "first + row <= task.length"),
    Mutation(HEADS, "first + row < task.length", "true"),
    Mutation(HEADS, "row < task.length", "row < task.length - 1", "load_rows("),
    Mutation(HEADS, "row >= task.length", "row > task.length", "store_rows("),
    Mutation(HEADS, "(length + kUnit - 1) / kUnit", "length / kUnit + 1"),
    Mutation(HEADS, "(length + kUnit - 1) / kUnit", "(length + kUnit - 2) / kUnit"),
    Mutation(HEADS, "next / kStreamed % 2", "0 * next"),
    Mutation(HEADS, "wait_for_copies<1>();", "wait_for_copies<2>();"),
    Mutation(HEADS, BARRIER, ";", "wait_for_copies<1>()"),
    Mutation(HEADS, BARRIER, ";", "The next copies overwrite"),
    # Softmax.
    Mutation(FORWARD, "lane_column(j, e) < left", "lane_column(j, e) <= left"),
    Mutation(FORWARD, "lane_column(j, e) < left", "true"),
    Mutation(FORWARD, "softmax.maximum[e / 2]", "0.0f", "exponentiate("),
    Mutation(FORWARD, "task.first_token + row", "task.first_token + unit", "p.lse["),
    Mutation(FORWARD, "row < task.length", "true", "lane_index() % 4 == 0"),
    Mutation(FORWARD, "softmax.maximum[half] * kLn2", "softmax.maximum[half]"),
    Mutation(FORWARD, BARRIER, ";"),
    Mutation(FORWARD, "wait_for_copies<0>();", ";"),
    Mutation(FORWARD, "unit += warp_count()", "unit += warp_count() + 1"),
    Mutation(FORWARD, "softmax.total[half] *= factor;", ";"),
    Mutation(FORWARD, "sums.value[j][2 * half] *= factor;", ";"),
    Mutation(FORWARD, "task.length - first", "kStreamed", "attend_streamed<T>("),
    # Gradients.
    Mutation(BACKWARD, "fmaf(x[1], y[1], delta[w % 2])", "delta[w % 2]"),
    Mutation(BACKWARD, "delta[w % 2]", "delta[w / 2]"),
    Mutation(BACKWARD, "task.head * p.n_tokens + token", "token"),
    Mutation(BACKWARD, "grad.value[j][e] - row.y", "grad.value[j][e]"),
    Mutation(BACKWARD, "lane_column(j, e) < left ? ds : 0.0f", "ds"),
    Mutation(BACKWARD, "grad.value[j][e] - query.y", "grad.value[j][e]"),
    Mutation(BACKWARD, "first + lane_column(j, e)", "first + lane_column(0, e)"),
    Mutation(
        BACKWARD, "statistics + buffer * columns", "statistics", "fetch_statistics(statistics"
    ),
    Mutation(BACKWARD, "first + i < task.length", "first + i <= task.length"),
    Mutation(BACKWARD, "first + c < task.length", "first + c + 1 < task.length"),
    Mutation(BACKWARD, BARRIER, ";", "attention_query_gradient_kernel("),
    Mutation(BACKWARD, BARRIER, ";", "attention_key_gradient_kernel("),
    Mutation(BACKWARD, "held + warp_count() * ValueRows<D>::kPacks", "held"),
    # Launches.
    Mutation(ATTENTION, "(units + plan.warps - 1) / plan.warps", "units / plan.warps"),
    Mutation(ATTENTION, "n_tasks += run.n_sequences * tasks;", "n_tasks += tasks;"),
    Mutation(ATTENTION, "first += kMostRuns", "first += kMostRuns + 1"),
]

# Kernel sources and defects of each test.
BY_TEST = {
    "sinkhorn": (("sinkhorn.cu", "merges.cu"), SINKHORN),
    "clustering": (("clustering_cross_entropy.cu", "merges.cu"), CLUSTERING_LOSS),
    "streamed": (("streamed_clustering.cu", "merges.cu"), STREAMED_CLUSTERING),
    "attention": (("varlen_attention.cu",), VARLEN_ATTENTION),
}
