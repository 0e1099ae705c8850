// Gradients of softmax(scale q k^T) v for sequences that fit in shared memory: one block has a
// sequence, and one pass over its scores gives dQ, dK and dV.
//
// Each warp owns some keys and holds their dK and dV in registers, while queries pass by in blocks.
// It leaves its rows of dS^T in shared memory, from which, when those of all keys are there, dQ of
// the block is summed, while the next block is under way. So each sum has one owner and a fixed
// order, with one barrier for each block of queries.
#pragma once

#include "cuda/attention_backward.cuh"

namespace franca::cuda {

constexpr int kWholeWarps = 8;  // a quarter of a multiprocessor has registers for two such warps
constexpr int kBlockUnits = 4;
constexpr int kBlock = kBlockUnits * kUnit;  // queries between two barriers
template <int D>
constexpr int kKeyUnits = 128 / D;  // of a warp
constexpr int kSumWidth = 64;       // elements of a row of dQ that a warp sums at a time

// Shared memory of a block after its task. It is laid out anew where it is needed, which takes
// fewer registers than to keep it.
template <int D>
struct WholeLayout {
  uint4 *keys, *values, *queries, *grads, *outs, *ds, *stages;
  float2* statistics;
  int units, n_blocks;

  // For a sequence of `units_` units.
  static std::size_t bytes(int units_, int warps) {
    const int rows = units_ * kUnit, blocks = units_ > kBlockUnits ? 2 : 1;
    const int packs = (4 * rows + kBlock) * kHeadPacks<D> + blocks * rows * kHeadPacks<kBlock> +
                      warps * kStagePacks;
    return kTaskBytes + static_cast<std::size_t>(packs) * kPackBytes + rows * sizeof(float2);
  }

  __device__ __forceinline__ explicit WholeLayout(const Task& task)
      : units(units_of(task.length)), n_blocks(divide_up(units, kBlockUnits)) {
    const int rows = units * kUnit, factor = rows * kHeadPacks<D>;
    keys = reinterpret_cast<uint4*>(shared_memory() + kTaskBytes);
    values = keys + factor;
    queries = values + factor;
    grads = queries + factor;
    outs = grads + factor;
    ds = outs + kBlock * kHeadPacks<D>;
    stages = ds + (n_blocks > 1 ? 2 : 1) * rows * kHeadPacks<kBlock>;
    statistics = reinterpret_cast<float2*>(stages + warp_count() * kStagePacks);
  }

  __device__ __forceinline__ uint4* stage() const { return stages + warp_index() * kStagePacks; }
  // dS^T of a block of queries: kBlock elements for each key.
  __device__ __forceinline__ uint4* ds_of(int block) const {
    return ds + block % 2 * units * kUnit * kHeadPacks<kBlock>;
  }
  // All blocks but the first have kBlockUnits units: a small one is soon there to begin with, while
  // at the end many warps would have nothing to do.
  __device__ __forceinline__ int end_of_block(int block) const {
    return units - (n_blocks - 1 - block) * kBlockUnits;
  }
  __device__ __forceinline__ int begin_of_block(int block) const {
    return block == 0 ? 0 : end_of_block(block - 1);
  }
  __device__ __forceinline__ int units_of_block(int block) const {
    return end_of_block(block) - begin_of_block(block);
  }
  // The first unit of keys that belongs to no warp.
  __device__ __forceinline__ int odd() const { return units / kKeyUnits<D> * kKeyUnits<D>; }
};

template <int D, int kUnits>
struct KeySums {
  Sums<D> key[kUnits], value[kUnits];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      key[u].clear();
      value[u].clear();
    }
  }
};

// Where a lane reads 16 queries.
template <int D>
struct QueryPlace {
  SharedAddress query_dot, query_sum, grad_dot, grad_sum;
  const float2* statistics;

  __device__ __forceinline__ QueryPlace(const WholeLayout<D>& shared, int row)
      : query_dot(dot_place<D>(shared.queries + row * kHeadPacks<D>)),
        query_sum(sum_place<D>(shared.queries + row * kHeadPacks<D>)),
        grad_dot(dot_place<D>(shared.grads + row * kHeadPacks<D>)),
        grad_sum(sum_place<D>(shared.grads + row * kHeadPacks<D>)),
        statistics(shared.statistics + row) {}
  __device__ __forceinline__ void advance() {
    query_dot = moved<D>(query_dot, 0, kUnit);
    query_sum = moved<D>(query_sum, 0, kUnit);
    grad_dot = moved<D>(grad_dot, 0, kUnit);
    grad_sum = moved<D>(grad_sum, 0, kUnit);
    statistics += kUnit;
  }
};

// Keys of a warp as factors in registers, and where it reads their values, for which these have no
// room.
template <int D, int kUnits>
struct KeyFactors {
  Rows<D> key[kUnits];
  SharedAddress values;

  __device__ __forceinline__ KeyFactors(const WholeLayout<D>& shared, int first) {
    const SharedAddress keys = sum_place<D>(shared.keys + first * kUnit * kHeadPacks<D>);
    values = sum_place<D>(shared.values + first * kUnit * kHeadPacks<D>);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        key[u].step[k] = load_fragment(moved<D>(keys, k, u * kUnit));
      }
    }
  }
};

// Probabilities and dS of 16 queries.
template <class T, int D, int kUnits>
__device__ __forceinline__ void score_queries(Scores (&scores)[kUnits], Scores (&ds)[kUnits],
                                              const KeyFactors<D, kUnits>& keys,
                                              const QueryPlace<D>& place, float scale) {
  multiply<T, D>(scores, [&](int u, int k) { return keys.key[u].step[k]; }, place.query_dot);
  multiply<T, D>(
      ds, [&](int u, int k) { return load_fragment(moved<D>(keys.values, k, u * kUnit)); },
      place.grad_dot);
  differentiate(scores, ds, place.statistics, scale);
}

template <class T, int kUnits>
__device__ __forceinline__ void as_factors(Fragment (&factors)[kUnits],
                                           const Scores (&scores)[kUnits]) {
#pragma unroll
  for (int u = 0; u < kUnits; ++u) factors[u] = as_factor<T>(scores[u]);
}

// Stores dS of 16 keys, the first being `key`, and of the queries of unit u of a block. Keys that
// do not exist have none, whatever their probability.
__device__ __forceinline__ void store_ds(uint4* to, const Fragment& ds, int key, int u,
                                         int length) {
  auto* words = reinterpret_cast<uint32_t*>(to) + lane_index() % 4;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const int row = key + w % 2 * 8 + lane_index() / 4;
    words[4 * head_place<kBlock>(row, 2 * u + w / 2)] = row < length ? ds.word[w] : 0;
  }
}

// Adds a block of queries to the sums of the warp's keys, which begin with unit `first`, and stores
// their dS.
template <class T, int D>
__device__ __forceinline__ void add_block(KeySums<D, kKeyUnits<D>>& sums, const Task& task,
                                          int block, int first, float scale) {
  const WholeLayout<D> shared(task);
  const int n_units = shared.units_of_block(block), length = task.length;
  uint4* to = shared.ds_of(block);
  QueryPlace<D> place(shared, shared.begin_of_block(block) * kUnit);
  const KeyFactors<D, kKeyUnits<D>> keys(shared, first);
#pragma unroll 1
  for (int c = 0; c < n_units; ++c) {
    Scores scores[kKeyUnits<D>], ds[kKeyUnits<D>];
    Fragment factors[kKeyUnits<D>];
    score_queries<T>(scores, ds, keys, place, scale);
    as_factors<T>(factors, scores);
    add_weighted<T, D>(sums.value, factors, place.grad_sum);
    as_factors<T>(factors, ds);
#pragma unroll
    for (int u = 0; u < kKeyUnits<D>; ++u) {
      store_ds(to, factors[u], (first + u) * kUnit, c, length);
    }
    add_weighted<T, D>(sums.key, factors, place.query_sum);
    place.advance();
  }
}

// Stores dS of a block for the odd unit of keys: the last warps have a unit of queries each.
template <class T, int D>
__device__ __forceinline__ void store_odd_ds(const Task& task, int block, float scale) {
  const WholeLayout<D> shared(task);
  if (shared.odd() == shared.units) return;
  const int n_units = shared.units_of_block(block);
#pragma unroll 1
  for (int u = warp_count() - 1 - warp_index(); u < n_units; u += warp_count()) {
    const KeyFactors<D, 1> keys(shared, shared.odd());
    Scores scores[1], ds[1];
    const QueryPlace<D> place(shared, (shared.begin_of_block(block) + u) * kUnit);
    score_queries<T>(scores, ds, keys, place, scale);
    store_ds(shared.ds_of(block), as_factor<T>(ds[0]), shared.odd() * kUnit, u, task.length);
  }
}

// Stores dQ of a block: the first warps sum 64 elements of a unit of queries each over all keys.
template <class T, int D>
__device__ __forceinline__ void store_query_gradients(const BackwardParameters& p, const Task& task,
                                                      int block) {
  constexpr int kParts = D / kSumWidth;
  const WholeLayout<D> shared(task);
  const int n_items = shared.units_of_block(block) * kParts;
#pragma unroll 1
  for (int item = warp_index(); item < n_items; item += warp_count()) {
    const int u = item / kParts, part = item % kParts * kHeadPacks<kSumWidth>;
    const SharedAddress ds = moved<kBlock>(dot_place<kBlock>(shared.ds_of(block)), u, 0);
    const SharedAddress keys = sum_place<D>(shared.keys + part);
    Sums<kSumWidth> sums[1];
    sums[0].clear();
#pragma unroll 2
    for (int key = 0; key < shared.units * kUnit; key += kUnit) {
      const Fragment factor[1] = {load_fragment_transposed(moved<kBlock>(ds, 0, key))};
      add_weighted<T, D>(sums, factor, moved<D>(keys, 0, key));
    }
    const float scale[2] = {p.scale, p.scale};
    Packed dq = p.dq;
    dq.data += part * kPackBytes;
    store_rows<T>(dq, task, shared.begin_of_block(block) + u, sums[0], scale, shared.stage());
  }
}

// Starts the copies of a block of queries, the gradients of their outputs, and the outputs.
template <int D>
__device__ __forceinline__ void fetch_block(const BackwardParameters& p, const Task& task,
                                            int block) {
  const WholeLayout<D> shared(task);
  const int first = shared.begin_of_block(block) * kUnit;
  RowCopies<D, 3>(
      {shared.queries + first * kHeadPacks<D>, shared.grads + first * kHeadPacks<D>, shared.outs},
      {&p.q, &p.grad_out, &p.out}, task, first, INT32_MAX)
      .copy_until(shared.units_of_block(block) * kUnit);
}

// delta of a block, from what each thread has copied itself.
template <class T, int D>
__device__ __forceinline__ void add_deltas(const Task& task, int block) {
  const WholeLayout<D> shared(task);
  const int first = shared.begin_of_block(block) * kUnit;
  const uint4* grads = shared.grads + first * kHeadPacks<D>;
  const int end = shared.units_of_block(block) * kUnit;
  const int pack = static_cast<int>(threadIdx.x) % kHeadPacks<D>;
  const int rows = static_cast<int>(blockDim.x) / kHeadPacks<D>;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / kHeadPacks<D>; row < end; row += rows) {
    const int place = head_place<D>(row, pack);
    float out[8], grad[8], delta = 0.0f;
    unpack(out, load_vector(shared.outs + place), static_cast<const T*>(nullptr));
    unpack(grad, load_vector(grads + place), static_cast<const T*>(nullptr));
#pragma unroll
    for (int i = 0; i < 8; ++i) delta = fmaf(out[i], grad[i], delta);
    delta = warp_sum<kHeadPacks<D>>(delta);
    if (pack == 0) shared.statistics[first + row].y = delta;
  }
}

// Starts the copies of keys, values and the first block, and readies its statistics.
template <class T, int D>
__device__ __forceinline__ void begin_sequence(const BackwardParameters& p,
                                               const Schedule& schedule, const Task& task) {
  const WholeLayout<D> shared(task);
  const int rows = shared.units * kUnit;
  RowCopies<D, 2>({shared.keys, shared.values}, {&p.k, &p.v}, task, 0, INT32_MAX).copy_until(rows);
  fetch_block<D>(p, task, 0);
  commit_copies();
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += static_cast<int>(blockDim.x)) {
    const int64_t at = (task.first_token + row) * schedule.n_heads + task.head;
    // Queries that do not exist have no probabilities.
    shared.statistics[row].x = row < task.length ? p.lse[at] * kLog2E : kInfinity;
  }
  wait_for_copies<0>();
  add_deltas<T, D>(task, 0);
  block_barrier();
}

// Sums of the odd unit of keys over this warp's share of the queries.
template <class T, int D>
__device__ __forceinline__ void sum_odd(KeySums<D, 1>& sums, const Task& task, float scale) {
  const WholeLayout<D> shared(task);
  const KeyFactors<D, 1> keys(shared, shared.odd());
  sums.clear();
#pragma unroll 1
  for (int unit = warp_index(); unit < shared.units; unit += warp_count()) {
    const QueryPlace<D> place(shared, unit * kUnit);
    Scores scores[1], ds[1];
    Fragment factors[1];
    score_queries<T>(scores, ds, keys, place, scale);
    as_factors<T>(factors, scores);
    add_weighted<T, D>(sums.value, factors, place.grad_sum);
    as_factors<T>(factors, ds);
    add_weighted<T, D>(sums.key, factors, place.query_sum);
  }
}

// Adds up the warps' sums of the odd unit in their order, and stores its gradients.
template <class T, int D>
__device__ __forceinline__ void store_odd(const BackwardParameters& p, const Task& task,
                                          const KeySums<D, 1>& own) {
  constexpr int kPacks = D / 8 * kWarpSize;  // the sums of 16 rows as lanes hold them
  const WholeLayout<D> shared(task);
  const int shares = warp_count() < shared.units ? warp_count() : shared.units;
  // Where the sequence was read to there is room for as many sums as it has units. Nobody needs it.
  uint4* partial = shared.keys + lane_index();
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
    if (warp_index() >= shares) continue;
    uint4* to = partial + 2 * warp_index() * kPacks + j * kWarpSize;
    store_vector(to, make_pack(own.key[0].value[j], static_cast<const float*>(nullptr)));
    store_vector(to + kPacks, make_pack(own.value[0].value[j], static_cast<const float*>(nullptr)));
  }
  block_barrier();
#pragma unroll 1
  for (int which = warp_index(); which < 2; which += warp_count()) {
    Sums<D> sums;
    sums.clear();
#pragma unroll 1
    for (int w = 0; w < shares; ++w) {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        float more[4];
        unpack(more, load_vector(partial + (2 * w + which) * kPacks + j * kWarpSize),
               static_cast<const float*>(nullptr));
#pragma unroll
        for (int e = 0; e < 4; ++e) sums.value[j][e] += more[e];
      }
    }
    const float factor = which == 0 ? p.scale : 1.0f, factors[2] = {factor, factor};
    store_rows<T>(which == 0 ? p.dk : p.dv, task, shared.odd(), sums, factors, shared.stage());
  }
}

// One block has a sequence. Where its units do not come out even, the last unit of keys belongs to
// no warp, and all of them share its work.
template <class T, int D>
__global__ void __launch_bounds__(kWholeWarps* kWarpSize, 1)
    attention_gradient_kernel(const __grid_constant__ BackwardParameters p,
                              const __grid_constant__ Schedule schedule) {
  const Task& task = keep_task<true>(schedule);
  const int first = warp_index() * kKeyUnits<D>;
  begin_sequence<T, D>(p, schedule, task);
  KeySums<D, kKeyUnits<D>> sums;
  sums.clear();
#pragma unroll 1
  for (int block = 0;; ++block) {
    const int n_blocks = WholeLayout<D>(task).n_blocks;
    if (block + 1 < n_blocks) fetch_block<D>(p, task, block + 1);
    commit_copies();
    // Before anything else, so that its many waits for shared memory meet the products of the warps
    // that have no part in it.
    if (block > 0) store_query_gradients<T, D>(p, task, block - 1);
    if (block == n_blocks) break;
    if (first < WholeLayout<D>(task).odd()) add_block<T>(sums, task, block, first, p.scale_log2);
    store_odd_ds<T, D>(task, block, p.scale_log2);
    wait_for_copies<0>();
    if (block + 1 < n_blocks) add_deltas<T, D>(task, block + 1);
    block_barrier();
  }
  const WholeLayout<D> shared(task);
  if (first < shared.odd()) {
    const float scale[2] = {p.scale, p.scale}, one[2] = {1.0f, 1.0f};
#pragma unroll
    for (int u = 0; u < kKeyUnits<D>; ++u) {
      store_rows<T>(p.dk, task, first + u, sums.key[u], scale, shared.stage());
      store_rows<T>(p.dv, task, first + u, sums.value[u], one, shared.stage());
    }
  }
  if (shared.odd() == shared.units) return;
  KeySums<D, 1> share;
  sum_odd<T, D>(share, task, p.scale_log2);
  block_barrier();
  store_odd<T, D>(p, task, share);
}

}  // namespace franca::cuda
