// Gradients of softmax(scale q k^T) v without atomics: one kernel sums over keys (dQ), one over
// queries (dK and dV). Both rebuild the probabilities from the log-sum-exp, so that each sum has
// one owner and a fixed order, for two more products in seven.
//
// With P the probabilities and delta = rowsum(dO * O): dV = P^T dO, dS = P * (dO V^T - delta),
// dQ = scale dS K, dK = scale dS^T Q.
#pragma once

#include "cuda/attention_tile.cuh"

namespace franca::cuda {

struct BackwardParameters {
  Packed q, k, v, out, grad_out, dq, dk, dv;
  const float* lse;    // [tokens, heads]
  float2* statistics;  // [heads, tokens]: lse times log2(e), and delta
  int64_t n_tokens;
  float scale;
  float scale_log2;  // times log2(e)
};

template <int D>
constexpr int kUnrolledSteps = D == 64 ? 2 : 1;

template <int D>
struct QueryRows {
  HeldRows<D, false> query, grad;
  float2 statistics[2];
};

template <class T, int D>
__device__ __forceinline__ void load_query_rows(QueryRows<D>& rows, const BackwardParameters& p,
                                                const Schedule& schedule, const Task& task,
                                                int unit) {
  load_rows(rows.query, nullptr, p.q, task, unit);
  load_rows(rows.grad, nullptr, p.grad_out, task, unit);
  float delta[2] = {0.0f, 0.0f};
  {
    Rows<D> out;
    load_rows(out, p.out, task, unit);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float x[2], y[2];
        unpack_pair(x, out.step[k].word[w], static_cast<const T*>(nullptr));
        unpack_pair(y, rows.grad.at(k).word[w], static_cast<const T*>(nullptr));
        delta[w % 2] = fmaf(x[0], y[0], fmaf(x[1], y[1], delta[w % 2]));
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    delta[half] = warp_sum<4>(delta[half]);
    const int row = lane_row(unit, half);
    rows.statistics[half] = make_float2(kInfinity, 0.0f);
    if (row >= task.length) continue;
    const int64_t token = task.first_token + row;
    const float lse = p.lse[token * schedule.n_heads + task.head] * kLog2E;
    rows.statistics[half] = make_float2(lse, delta[half]);
    if (lane_index() % 4 == 0) {
      p.statistics[task.head * p.n_tokens + token] = rows.statistics[half];
    }
  }
}

// Adds dS K for 16 keys, of which `left` exist.
template <class T, int D>
__device__ __forceinline__ void add_query_gradient(Sums<D>& sums, const QueryRows<D>& rows,
                                                   float scale, const uint4* keys,
                                                   const uint4* values, int first, int left) {
  Scores scores, grad;
  multiply<T>(scores, rows.query, keys, first);
  multiply<T>(grad, rows.grad, values, first);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 row = rows.statistics[e / 2];
      const float probability = exp2_fast(fmaf(scores.value[j][e], scale, -row.x));
      const float ds = probability * (grad.value[j][e] - row.y);
      scores.value[j][e] = lane_column(j, e) < left ? ds : 0.0f;
    }
  }
  add_weighted<T>(sums, as_factor<T>(scores), keys, first);
}

// dQ, and the statistics that the other kernel reads.
template <class T, int D, bool whole>
__global__ void __launch_bounds__(kMostWarps* kWarpSize)
    attention_query_gradient_kernel(const __grid_constant__ BackwardParameters p,
                                    const __grid_constant__ Schedule schedule) {
  const Task task = find_task(schedule);
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  const int units = units_of(task.length), columns = whole ? units * kUnit : kStreamed;
  const int factor = columns * kHeadPacks<D>;
  const auto fetch = [&](int buffer, int first) {
    fetch_rows<D>(shared + 2 * buffer * factor, p.k, task, first, columns);
    fetch_rows<D>(shared + (2 * buffer + 1) * factor, p.v, task, first, columns);
  };
  QueryRows<D> rows;
  Sums<D> sums;
  const auto step = [&](int buffer, int first) {
    const uint4* keys = shared + 2 * buffer * factor;
#pragma unroll kUnrolledSteps < D>
    for (int c = 0; c < columns && first + c < task.length; c += kUnit) {
      add_query_gradient<T>(sums, rows, p.scale_log2, keys, keys + factor, c,
                            task.length - first - c);
    }
  };
  const float scale[2] = {p.scale, p.scale};
  int unit = task.first_unit + warp_index();
  if (whole) fetch(0, 0);
  commit_copies();
  load_query_rows<T>(rows, p, schedule, task, unit);
  if (whole) {
    wait_for_copies<0>();
    block_barrier();
    if (unit >= units) return;
  }
  while (true) {
    sums.clear();
    if (whole) {
      step(0, 0);
    } else {
      stream_columns(task.length, fetch, step);
    }
    store_rows<T>(p.dq, task, unit, sums, scale);
    unit += warp_count();
    if (!whole || unit >= units) return;
    load_query_rows<T>(rows, p, schedule, task, unit);
  }
}

template <int D>
using ValueRows = HeldRows<D, (D > 64)>;

template <int D>
struct KeyRows {
  HeldRows<D, false> key;
  ValueRows<D> value;
};

// Adds dS^T Q and P^T dO for 16 queries.
template <class T, int D>
__device__ __forceinline__ void add_key_gradient(Sums<D>& key_sums, Sums<D>& value_sums,
                                                 const KeyRows<D>& rows, float scale,
                                                 const uint4* queries, const uint4* grads,
                                                 const float2* statistics, int first) {
  Scores scores, grad;
  multiply<T>(scores, rows.key, queries, first);
  multiply<T>(grad, rows.value, grads, first);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 query = statistics[first + lane_column(j, e)];
      scores.value[j][e] = exp2_fast(fmaf(scores.value[j][e], scale, -query.x));
      grad.value[j][e] = scores.value[j][e] * (grad.value[j][e] - query.y);
    }
  }
  add_weighted<T>(value_sums, as_factor<T>(scores), grads, first);
  add_weighted<T>(key_sums, as_factor<T>(grad), queries, first);
}

// Statistics of queries [first, first + count). Those of queries that do not exist make their
// probabilities zero.
__device__ __forceinline__ void fetch_statistics(float2* shared, const BackwardParameters& p,
                                                 const Task& task, int first, int count) {
  const float2* from = p.statistics + task.head * p.n_tokens + task.first_token;
  for (int i = threadIdx.x; i < count; i += static_cast<int>(blockDim.x)) {
    shared[i] = first + i < task.length ? from[first + i] : make_float2(kInfinity, 0.0f);
  }
}

// dK and dV.
template <class T, int D, bool whole>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 1)
    attention_key_gradient_kernel(const __grid_constant__ BackwardParameters p,
                                  const __grid_constant__ Schedule schedule) {
  const Task task = find_task(schedule);
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  const int units = units_of(task.length), columns = whole ? units * kUnit : kStreamed;
  const int factor = columns * kHeadPacks<D>;
  uint4* held = shared + (whole ? 2 : 4) * factor;
  auto* statistics = reinterpret_cast<float2*>(held + warp_count() * ValueRows<D>::kPacks);
  const auto fetch = [&](int buffer, int first) {
    fetch_rows<D>(shared + 2 * buffer * factor, p.q, task, first, columns);
    fetch_rows<D>(shared + (2 * buffer + 1) * factor, p.grad_out, task, first, columns);
    fetch_statistics(statistics + buffer * columns, p, task, first, columns);
  };
  KeyRows<D> rows;
  Sums<D> key_sums, value_sums;
  const auto step = [&](int buffer, int first) {
    const uint4* queries = shared + 2 * buffer * factor;
#pragma unroll 1
    for (int c = 0; c < columns && first + c < task.length; c += kUnit) {
      add_key_gradient<T>(key_sums, value_sums, rows, p.scale_log2, queries, queries + factor,
                          statistics + buffer * columns, c);
    }
  };
  const float scale[2] = {p.scale, p.scale}, one[2] = {1.0f, 1.0f};
  int unit = task.first_unit + warp_index();
  if (whole) fetch(0, 0);
  commit_copies();
  load_rows(rows.key, nullptr, p.k, task, unit);
  load_rows(rows.value, held, p.v, task, unit);
  if (whole) {
    wait_for_copies<0>();
    block_barrier();
    if (unit >= units) return;
  }
  while (true) {
    key_sums.clear();
    value_sums.clear();
    if (whole) {
      step(0, 0);
    } else {
      stream_columns(task.length, fetch, step);
    }
    store_rows<T>(p.dk, task, unit, key_sums, scale);
    store_rows<T>(p.dv, task, unit, value_sums, one);
    unit += warp_count();
    if (!whole || unit >= units) return;
    load_rows(rows.key, nullptr, p.k, task, unit);
    load_rows(rows.value, held, p.v, task, unit);
  }
}

}  // namespace franca::cuda
