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
FORMS = "score_forms.cuh"
TILE = "score_tile.cuh"
SUMS = "score_sums.cuh"
PLAN = "score_launch.cuh"
STREAMED = "streamed_kernels.cuh"
LOSS = "streamed_loss.cuh"
TASKS = "attention_tasks.cuh"
LOSS_HOST = "streamed_loss.cu"
HEADS = "attention_tile.cuh"
FORWARD = "attention_forward.cuh"
BACKWARD = "attention_backward.cuh"
WHOLE = "attention_whole_backward.cuh"
ATTENTION = "varlen_attention.cu"
MATRIX = "primitives/matrix.cuh"
WARPGROUP = "primitives/warpgroup.cuh"
BARRIER = "block_barrier();"
WARP_BARRIER = "warp_barrier();"
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
    # Products of warps.
    Mutation(FORMS, "row * kPacksPerRow", "row * 4", "int place("),
    Mutation(FORMS, "lane / 16 * 8 + lane % 8", "lane % 8"),
    Mutation(FORMS, "lane / 16", "0", "const int of_x"),
    Mutation(FORMS, "of_v ^ (2 * k)", "of_v"),
    Mutation(FORMS, "j % 2 * 2 + 1", "j % 2 * 2"),
    Mutation(FORMS, "(r / 2) * 16", "(r / 2) * 8"),
    Mutation(FORMS, "(c / 2) * 8", "(c / 2) * 16"),
    Mutation(FORMS, "warp_index() % warps_across", "0"),
    Mutation(FORMS, "at(r, c) = 0.0f;", ";", "void clear("),
    # Products of warpgroups.
    Mutation(FORMS, "pack ^ (row % kPacksPerRow)", "pack"),
    Mutation(FORMS, "fence_for_tensor_cores();", ";"),
    Mutation(FORMS, "wait_for_warpgroup<kInFlight>();", ";"),
    Mutation(FORMS, "wait_for_warpgroup<0>();", "wait_for_warpgroup<1>();"),
    Mutation(FORMS, "warp_index() / 4 * 64 * kPacksPerRow", "0"),
    Mutation(FORMS, "fence_warpgroup();", ";"),
    Mutation(FORMS, "a + k * kNextDepth", "a"),
    Mutation(FORMS, "b + k * kNextDepth", "b + k"),
    Mutation(FORMS, "commit_warpgroup();", ";"),
    Mutation(WARPGROUP, "kEightRows << 32", "kEightRows << 31"),
    Mutation(WARPGROUP, "kSwizzle128 << 62", "kSwizzle128 << 63"),
    Mutation(WARPGROUP, "0x3ffff", "0xffff"),
    # Copies that run ahead.
    Mutation(TILE, BARRIER, ";", "Form::publish();"),
    Mutation(TILE, "Form::publish();", ";"),
    Mutation(TILE, "wait_for_copies(steps_ahead() - 1);", "wait_for_copies(steps_ahead());"),
    Mutation(TILE, "plan_.stages - 1 - Form::kInFlight", "plan_.stages - 1"),
    Mutation(TILE, "plan_.stages - 1 - Form::kInFlight", "plan_.stages - Form::kInFlight"),
    Mutation(TILE, "number + 1 < plan_.stages", "number < plan_.stages"),
    Mutation(TILE, "number * plan_.stage_steps", "number", "uint4* stage("),
    Mutation(TILE, "p < plan_.kept", "p <= plan_.kept"),
    Mutation(TILE, "p * steps_of(products_.held(0))", "p"),
    Mutation(TILE, "tile_ == 0", "false"),
    Mutation(TILE, "product_ >= plan_.kept", "false"),
    Mutation(TILE, "step_ < whole_steps_", "step_ <= whole_steps_"),
    Mutation(TILE, "first + kTileColumns <= products_.end()", "true"),
    Mutation(TILE, "matrix.vectors", "true", "const bool whole"),
    Mutation(TILE, "matrix.row_bytes * kRowsAtATime", "matrix.row_bytes"),
    Mutation(TILE, "from_ += kDepth * sizeof(T);", ";"),
    Mutation(TILE, "n[j - 1] = n[j];", ";"),
    Mutation(TILE, "first + r < end", "true"),
    Mutation(TILE, "n < 0 ? 0 : matrix.columns - element", "n < 0 ? 0 : kDepth"),
    Mutation(TILE, "left >= kPack<T> || left <= 0", "true"),
    Mutation(TILE, "matrix.vectors", "true", "const int64_t left"),
    Mutation(TILE, "(matrix.columns + kDepth - 1) / kDepth", "matrix.columns / kDepth"),
    Mutation(TILE, "++product_ == products_.count()", "++product_ >= 1"),
    Mutation(TILE, "part == step", "part == step + 1"),
    Mutation(TILE, "part >= n_steps", "part > n_steps"),
    Mutation(TILE, "finish(tile);", ";", "const During& during"),
    # How much is kept.
    Mutation(PLAN, "kept * work.steps", "0 * work.steps"),
    Mutation(PLAN, "all ? work.last_steps - work.steps : 0", "0"),
    Mutation(PLAN, "all ? 1 : 2", "1"),
    Mutation(PLAN, "side.warpgroups && offers_warpgroups()", "side.warpgroups"),
    Mutation(PLAN, "side.warpgroups && offers_warpgroups()", "offers_warpgroups()"),
    # Sums and stores.
    Mutation(
        SUMS, "total *= exp2_fast(maximum - LogSumExp::shift(new_maximum));", "total *= 1.0f;"
    ),
    Mutation(SUMS, "other.total", "1.0f", "total +="),
    Mutation(SUMS, "agreement += other.agreement;", ";"),
    Mutation(SUMS, "tile.at(r, c) - offset", "tile.at(r, c)"),
    Mutation(SUMS, "shuffle_xor(sums[r].agreement, mask)", "shuffle_xor(0.0f, mask)"),
    Mutation(SUMS, "shuffle_xor(sums[r].total, mask)", "shuffle_xor(sums[r].total, 1)"),
    Mutation(SUMS, "lane_index() % 4 != 0", "lane_index() % 4 != 5"),
    Mutation(SUMS, BARRIER, ";", "Tile::kWarpsAcross == 1) return;"),
    Mutation(SUMS, "w < Tile::kWarpsAcross", "w < Tile::kWarpsAcross - 1"),
    Mutation(SUMS, "column / 2", "column / 4"),
    Mutation(SUMS, "c % 2 == 0 ? entries.y : entries.w", "entries.y"),
    Mutation(SUMS, "lane_index() % 4 * 6", "0"),
    Mutation(SUMS, "r * 8 < rows_", "r * 8 <= rows_"),
    Mutation(SUMS, "vectors_", "true", "void store_row("),
    Mutation(SUMS, "columns >= 8", "columns > 0", "void store_row("),
    Mutation(SUMS, "i < columns", "true"),
    Mutation(SUMS, "word[i / 2] >> (16 * (i % 2))", "word[i / 2]"),
    Mutation(SUMS, "to += between_rows_;", ";"),
    Mutation(SUMS, "scale == nullptr ? 1.0f : scale[k]", "scale == nullptr ? 0.0f : scale[k]"),
    # Passes.
    Mutation(STREAMED, "first_held + r < end_held", "true"),
    Mutation(STREAMED, "tile % kTilesPerSlice * kTileColumns", "0 * tile"),
    Mutation(STREAMED, "partial[n * scores.n_slices + blockIdx.y]", "partial[n * scores.n_slices]"),
    Mutation(STREAMED, "-kInfinity", "0.0f", "prototype[scores.head[slice.head]"),
    Mutation(STREAMED, BARRIER, ";", "table[threadIdx.x] ="),
    Mutation(STREAMED, "-kInfinity", "0.0f", "float offset ="),
    Mutation(STREAMED, "i == 0 ? offset.x : offset.y", "offset.x"),
    Mutation(STREAMED, BARRIER, ";", "offsets[threadIdx.x] ="),
    Mutation(STREAMED, "static_cast<int64_t>(blockIdx.y) * rows", "0"),
    Mutation(STREAMED, "row[columns.head * scores.n_rows + n]", "row[n]"),
    Mutation(STREAMED, "sums[r].maximum = 0.0f;", ";"),
    Mutation(STREAMED, "static_cast<int64_t>(blockIdx.y) * tiles", "0", "scores_kernel("),
    Mutation(STREAMED, BARRIER, ";", "scales[threadIdx.x] ="),
    # The loss.
    Mutation(PARAMETERS, "row[h * n_teacher_rows + n]", "row[n]"),
    Mutation(LOSS, "p.teacher_row(m, product)", "p.teacher_row(m, 0)"),
    Mutation(LOSS, "product < p.n_targets ? p.teacher : p.student", "p.teacher"),
    Mutation(LOSS, "t == 0 || p.n_targets > 1", "t == 0", "tables().student[threadIdx.x] ="),
    Mutation(LOSS, "products_.offset(target, threadIdx.x)", "products_.offset(0, threadIdx.x)"),
    Mutation(LOSS, BARRIER, ";", "void add_targets("),
    Mutation(LOSS, BARRIER, ";", "pipeline_.multiply(tile, target);"),
    Mutation(LOSS, "pipeline_.finish(q);", ";"),
    Mutation(LOSS, "exists ? 0.0f : kNowhere", "0.0f"),
    Mutation(LOSS, "potential * kLog2E", "potential"),
    Mutation(LOSS, "-kInfinity", "0.0f", "if (first_row + r >= n_rows)"),
    Mutation(LOSS, "sum.agreement * (student_temperature * kLn2)", "sum.agreement"),
    Mutation(LOSS, "log2f(static_cast<float>(p.n_targets))", "0.0f"),
    Mutation(LOSS, "fmaf(ds[j], product, sums[column + j])", "ds[j] * product"),
    Mutation(LOSS, "ds[0] * pair.second(0)", "ds[0]"),
    Mutation(LOSS, "upper ? value[i] : value[i + half]", "value[i]"),
    Mutation(LOSS, "upper ? half : 0", "0"),
    Mutation(LOSS, "Tile::warp_down() * kTileColumns", "0"),
    Mutation(LOSS, "w < Tile::kWarpsDown", "w < Tile::kWarpsDown - 1"),
    Mutation(LOSS, BARRIER, ";", "void store_column_sums("),
    Mutation(LOSS, "blockIdx.x * range.columns + first", "first"),
    Mutation(LOSS, "blockIdx.y * of_block", "0 * of_block"),
    Mutation(LOSS_HOST, "lse + part.head * p.scores.n_rows", "lse"),
    Mutation(LOSS_HOST, "part < n_parts", "part < 1"),
    Mutation(LOSS_HOST, "if (n_parts == 1) return;", "return;"),
]

VARLEN_ATTENTION = [
    # Lanes.
    Mutation(WARP, "fmaxf(value, shuffle_xor(value, mask))", "fmaxf(value, shuffle_xor(value, 1))"),
    Mutation(WARP, "value += shuffle_xor(value, mask);", "value += shuffle_xor(value, 1);"),
    Mutation(WARP, "condition || other", "condition", "warp_any("),
    Mutation(MATRIX, "2 * (lane_index() % 4) + k", "2 * (lane_index() % 4)", "_transposed("),
    Mutation(HEADS, "half * 8 + lane_index() / 4", "half * 8 + lane_index() % 8"),
    Mutation(HEADS, "lane_index() % 4 * 2 + e % 2", "lane_index() % 4 * 2"),
    Mutation(HEADS, "lane / 16 * 8 + lane % 8", "lane % 16", "dot_place("),
    Mutation(HEADS, "lane / 8 % 2", "0", "dot_place("),
    Mutation(HEADS, "lane_index() % 16", "lane_index() % 8", "sum_place("),
    Mutation(HEADS, "lane_index() / 16", "0", "sum_place("),
    Mutation(
        HEADS,
        "place ^ static_cast<SharedAddress>(2 * k * kPackBytes)",
        "place + static_cast<SharedAddress>(2 * k * kPackBytes)",
    ),
    Mutation(BACKWARD, "shared + warp_index() * kPacks", "shared", "kPacks = D / 16"),
    # The stage between memory and fragments.
    Mutation(HEADS, "i * 8", "i * 4", "int stage_row("),
    Mutation(HEADS, "(pack ^ (row / 2 % kStageRowPacks))", "pack * 2", "int stage_place("),
    Mutation(HEADS, WARP_BARRIER, ";", "rows.step[2 * part + k] ="),
    Mutation(HEADS, "lane_index() % 16", "lane_index() % 8", "void deal_rows("),
    Mutation(HEADS, "2 * k + lane_index() / 16", "2 * k", "void deal_rows("),
    Mutation(HEADS, "part * kStageRowPacks + j", "j", "void store_rows("),
    Mutation(HEADS, "word ^ (4 * j)", "word + 4 * j", "void store_rows("),
    Mutation(HEADS, "i * 8 * packed.token_bytes", "0 * i", "void store_rows("),
    Mutation(HEADS, WARP_BARRIER, ";", "void store_rows("),
    Mutation(HEADS, WARP_BARRIER, ";", "load_vector(stage + stage_place(stage_row(i)"),
    # Strides, tiles and edges.
    Mutation(HEADS, "row * kHeadPacks<D>", "row * 8", "int head_place("),
    Mutation(HEADS, "row & 7", "row & 15", "int head_place("),
    Mutation(TASKS, "task.head * packed.head_bytes", "0 * packed.head_bytes"),
    Mutation(TASKS, "static_cast<int64_t>(sequence) * run.length", "sequence * kUnit"),
    Mutation(TASKS, "local * run.share", "local"),
    Mutation(TASKS, "local / run.share", "local"),
    Mutation(TASKS, "whole && left > run.share", "whole"),
    Mutation(TASKS, "whole && left > run.share", "false"),
    Mutation(TASKS, "local % run.share", "0"),
    Mutation(
        TASKS, "schedule.run[r + 1].first_task <= number", "schedule.run[r + 1].first_task < number"
    ),
    Mutation(TASKS, BARRIER, ";"),
    Mutation(TASKS, "(length + kUnit - 1) / kUnit", "length / kUnit + 1"),
    Mutation(TASKS, "(length + kUnit - 1) / kUnit", "(length + kUnit - 2) / kUnit"),
    Mutation(HEADS, "inside < length", "true", "copy_until("),
    Mutation(HEADS, "inside < length", "inside <= length", "copy_until("),
    Mutation(HEADS, "first + row", "row", ": inside("),
    Mutation(HEADS, "inside -= padded;", ";"),
    Mutation(HEADS, "(padded - length) * token_bytes[n]", "padded * token_bytes[n]"),
    Mutation(
        HEADS,
        "unit * kUnit + stage_row(i) < task.length",
        "unit * kUnit + stage_row(i) + 1 < task.length",
    ),
    Mutation(
        HEADS,
        "unit * kUnit + stage_row(i) >= task.length",
        "unit * kUnit + stage_row(i) > task.length",
    ),
    Mutation(HEADS, "next / kStreamed % 2", "0 * next"),
    Mutation(HEADS, "wait_for_copies<1>();", "wait_for_copies<2>();"),
    Mutation(HEADS, BARRIER, ";", "wait_for_copies<1>()"),
    Mutation(HEADS, BARRIER, ";", "The next copies overwrite"),
    # Softmax.
    Mutation(FORWARD, "last && lane_column(j, e) >= left", "false"),
    Mutation(FORWARD, "lane_column(j, e) >= left", "lane_column(j, e) > left"),
    Mutation(FORWARD, "fmaxf(maximum[u][half], value)", "value"),
    Mutation(FORWARD, "-a.shift[u][half]", "-a.shift[0][half]", "grew |="),
    Mutation(FORWARD, "kSlack", "300.0f", "grew |="),
    Mutation(FORWARD, "warp_maximum<4>(maximum[u][half])", "maximum[u][half]"),
    Mutation(FORWARD, "largest > old + kSlack ? largest : old", "largest"),
    Mutation(FORWARD, "largest > old + kSlack ? largest : old", "largest + 200.0f"),
    Mutation(FORWARD, "a.total[u][half] *= factor;", ";"),
    Mutation(FORWARD, "a.rounded[u][2 * half] *= factor;", ";"),
    Mutation(FORWARD, "a.sums[u].value[j][2 * half] *= factor;", ";"),
    Mutation(FORWARD, "-shift[i % 4 / 2]", "-shift[0]"),
    Mutation(FORWARD, "total[i % 4 / 2] += value;", "total[i % 2] += value;"),
    Mutation(FORWARD, "make_pair<T>(1.0f, 1.0f)", "make_pair<T>(1.0f, 0.0f)"),
    Mutation(FORWARD, "a.rounded[u][2 * half]", "total", "reciprocal_fast("),
    Mutation(FORWARD, "task.first_token + row", "task.first_token + unit", "p.lse +"),
    Mutation(FORWARD, "row + 8 * half < task.length", "true", "lane_index() % 4 == 0"),
    Mutation(FORWARD, "8 * half * n_heads", "half * n_heads", "lse["),
    # Whole sequences: packs, items, what is awaited.
    Mutation(FORWARD, "left > kUnit", "left >= kUnit", "rows > 0 &&"),
    Mutation(FORWARD, "if (rows <= 0) return left;", ";"),
    Mutation(FORWARD, "group += warp_count();", "group += warp_count() + 1;"),
    Mutation(FORWARD, "sequence += group / groups;", "sequence += group / groups + 1;"),
    Mutation(FORWARD, "task.first_token + sequence * task.length", "task.first_token", "Task own("),
    Mutation(FORWARD, "group * kRowUnits<D> + u", "group + u", "read_queries("),
    Mutation(FORWARD, "now.sequence * shared.padded", "0"),
    Mutation(FORWARD, "now.own(task)", "item.own(task)"),
    Mutation(FORWARD, "now.unit()", "item.unit()"),
    Mutation(FORWARD, "units_of(task.length) - item.unit() == 1", "true"),
    Mutation(FORWARD, "wait_for_copies<1>();", "wait_for_copies<2>();", "Arrival()"),
    Mutation(FORWARD, BARRIER, ";", "Arrival()"),
    Mutation(FORWARD, "wait_for_copies<0>();", ";", "void complete()"),
    Mutation(FORWARD, BARRIER, ";", "void complete()"),
    Mutation(FORWARD, "arrival.rows - first", "task.length"),
    Mutation(FORWARD, "arrival.complete();", ";", "attention_forward_kernel("),
    Mutation(FORWARD, "task.length - first", "kStreamed", "attend<T>(a, queries"),
    # Gradients of streamed sequences.
    Mutation(BACKWARD, "fmaf(x[1], y[1], delta[w % 2])", "delta[w % 2]"),
    Mutation(BACKWARD, "delta[w % 2]", "delta[w / 2]"),
    Mutation(BACKWARD, "task.head * p.n_tokens + token", "token"),
    Mutation(BACKWARD, "grad[0].value[i / 4][i % 4] - row.y", "grad[0].value[i / 4][i % 4]"),
    Mutation(BACKWARD, "lane_column(i / 4, i % 4) < left ? ds : 0.0f", "ds"),
    Mutation(BACKWARD, "grad[u].value[j][e] - delta[e % 2]", "grad[u].value[j][e]"),
    Mutation(BACKWARD, "statistics + lane_column(j, 0)", "statistics + lane_column(0, 0)"),
    Mutation(
        BACKWARD, "statistics + buffer * kStreamed", "statistics", "fetch_statistics(statistics"
    ),
    Mutation(BACKWARD, "first + i < task.length", "first + i <= task.length"),
    Mutation(BACKWARD, "first + c < task.length", "first + c + 1 < task.length"),
    # Gradients of whole sequences.
    Mutation(WHOLE, "block % 2 * units", "0 * units", "uint4* ds_of("),
    Mutation(WHOLE, "block == 0 ? 0 : end_of_block(block - 1)", "block * kBlockUnits"),
    Mutation(WHOLE, "units / kKeyUnits<D> * kKeyUnits<D>", "units", "int odd()"),
    Mutation(WHOLE, "first * kUnit * kHeadPacks<D>", "0 * first", "values = sum_place"),
    Mutation(WHOLE, "u * kUnit", "0 * u", "load_fragment(moved<D>(keys.values"),
    Mutation(WHOLE, "statistics += kUnit;", ";"),
    Mutation(WHOLE, "row < length ? ds.word[w] : 0", "ds.word[w]"),
    Mutation(WHOLE, "w % 2 * 8", "w / 2 * 8", "void store_ds("),
    Mutation(WHOLE, "2 * u + w / 2", "2 * u", "void store_ds("),
    Mutation(WHOLE, "shared.begin_of_block(block) * kUnit", "block * kBlock", "void add_block("),
    Mutation(WHOLE, "(first + u) * kUnit", "first * kUnit", "void add_block("),
    Mutation(WHOLE, "u += warp_count()", "u += 2 * warp_count()", "void store_odd_ds("),
    Mutation(WHOLE, "shared.odd() * kUnit", "0", "store_ds(shared.ds_of(block)"),
    Mutation(WHOLE, "item += warp_count()", "item += 2 * warp_count()"),
    Mutation(WHOLE, "item % kParts", "0 * item"),
    Mutation(WHOLE, "key < shared.units * kUnit", "key < shared.odd() * kUnit"),
    Mutation(WHOLE, "dq.data += part * kPackBytes;", ";"),
    Mutation(WHOLE, "warp_sum<kHeadPacks<D>>(delta)", "warp_sum<8>(delta)"),
    Mutation(WHOLE, "wait_for_copies<0>();", ";", "void begin_sequence("),
    Mutation(WHOLE, BARRIER, ";", "void begin_sequence("),
    Mutation(WHOLE, "unit += warp_count()", "unit += warp_count() + 1", "void sum_odd("),
    Mutation(WHOLE, "2 * warp_index() * kPacks", "warp_index() * kPacks", "uint4* partial"),
    Mutation(WHOLE, BARRIER, ";", "own.value[0].value[j]"),
    Mutation(WHOLE, "w < shares", "w < shares - 1"),
    Mutation(WHOLE, "which == 0 ? p.dk : p.dv", "p.dk"),
    Mutation(WHOLE, "block + 1 < n_blocks", "false", "const int n_blocks"),
    Mutation(WHOLE, "block > 0", "block > 1", "const int n_blocks"),
    Mutation(WHOLE, "wait_for_copies<0>();", ";", "store_odd_ds<T, D>(task, block"),
    Mutation(WHOLE, BARRIER, ";", "add_deltas<T, D>(task, block + 1)"),
    Mutation(WHOLE, BARRIER, ";", "sum_odd<T, D>(share"),
    # Launches.
    Mutation(ATTENTION, "a->length > b->length", "a->length < b->length"),
    Mutation(ATTENTION, "divided_up(units, group_units * warps)", "units / (group_units * warps)"),
    Mutation(ATTENTION, "(run.n_sequences + share - 1) / share", "run.n_sequences / share + 1"),
    Mutation(ATTENTION, "run.n_sequences * share", "run.n_sequences"),
    Mutation(ATTENTION, "first += kMostRuns", "first += kMostRuns + 1"),
    Mutation(ATTENTION, "std::max(units, sequences * own)", "std::max(units, own)"),
    Mutation(ATTENTION, "most_shared_bytes()", "std::size_t{227 * 1024}", "kWholeBytes, "),
    Mutation(ATTENTION, "WholeLayout<D>::bytes(units, kWholeWarps) > most_shared_bytes()", "false"),
]

# Kernel sources and defects of each test.
BY_TEST = {
    "sinkhorn": (("sinkhorn.cu", "merges.cu"), SINKHORN),
    "clustering": (("clustering_cross_entropy.cu", "merges.cu"), CLUSTERING_LOSS),
    "streamed": (("streamed_clustering.cu", "streamed_loss.cu", "merges.cu"), STREAMED_CLUSTERING),
    "attention": (("varlen_attention.cu",), VARLEN_ATTENTION),
}
