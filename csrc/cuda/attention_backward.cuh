// Gradients of softmax(scale q k^T) v without atomics, for sequences that one block has no room
// for: one kernel sums over keys (dQ), one over queries (dK and dV). Both rebuild the probabilities
// from the log-sum-exp, so that each sum has one owner and a fixed order, for two more products in
// seven.
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
  Rows<D> query, grad;
  float2 statistics[2];
};

template <class T, int D>
__device__ __forceinline__ void load_query_rows(QueryRows<D>& rows, const BackwardParameters& p,
                                                const Schedule& schedule, const Task& task,
                                                int unit, uint4* stage) {
  Rows<D> out;
  read_rows(rows.query, p.q, task, unit);
  read_rows(rows.grad, p.grad_out, task, unit);
  read_rows(out, p.out, task, unit);
  deal_rows(rows.query, stage);
  deal_rows(rows.grad, stage);
  deal_rows(out, stage);
  float delta[2] = {0.0f, 0.0f};
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float x[2], y[2];
      unpack_pair(x, out.step[k].word[w], static_cast<const T*>(nullptr));
      unpack_pair(y, rows.grad.step[k].word[w], static_cast<const T*>(nullptr));
      delta[w % 2] = fmaf(x[0], y[0], fmaf(x[1], y[1], delta[w % 2]));
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
__device__ __forceinline__ void add_query_gradient(Sums<D> (&sums)[1], const QueryRows<D>& rows,
                                                   float scale, const uint4* keys,
                                                   const uint4* values, int left) {
  Scores scores[1], grad[1];
  multiply<T, D>(scores, [&](int, int k) { return rows.query.step[k]; }, dot_place<D>(keys));
  multiply<T, D>(grad, [&](int, int k) { return rows.grad.step[k]; }, dot_place<D>(values));
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float& value = scores[0].value[i / 4][i % 4];
    const float2 row = rows.statistics[i % 4 / 2];
    const float probability = exp2_fast(fmaf(value, scale, -row.x));
    const float ds = probability * (grad[0].value[i / 4][i % 4] - row.y);
    value = lane_column(i / 4, i % 4) < left ? ds : 0.0f;
  }
  const Fragment factor[1] = {as_factor<T>(scores[0])};
  add_weighted<T, D>(sums, factor, sum_place<D>(keys));
}

// dQ, and the statistics that the other kernel reads.
template <class T, int D>
__global__ void __launch_bounds__(kMostWarps* kWarpSize)
    attention_query_gradient_kernel(const __grid_constant__ BackwardParameters p,
                                    const __grid_constant__ Schedule schedule) {
  const Task task = find_task<false>(schedule);
  const int unit = task.part * warp_count() + warp_index();
  constexpr int kFactor = kStreamed * kHeadPacks<D>;
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  uint4* stage = shared + 4 * kFactor + warp_index() * kStagePacks;
  QueryRows<D> rows;
  load_query_rows<T>(rows, p, schedule, task, unit, stage);
  Sums<D> sums[1];
  sums[0].clear();
  stream_columns(
      task.length,
      [&](int buffer, int first) {
        uint4* keys = shared + 2 * buffer * kFactor;
        RowCopies<D, 2>({keys, keys + kFactor}, {&p.k, &p.v}, task, first, INT32_MAX)
            .copy_until(kStreamed);
      },
      [&](int buffer, int first) {
        const uint4* keys = shared + 2 * buffer * kFactor;
#pragma unroll kUnrolledSteps < D>
        for (int c = 0; c < kStreamed && first + c < task.length; c += kUnit) {
          add_query_gradient<T>(sums, rows, p.scale_log2, keys + c * kHeadPacks<D>,
                                keys + kFactor + c * kHeadPacks<D>, task.length - first - c);
        }
      });
  const float scale[2] = {p.scale, p.scale};
  store_rows<T>(p.dq, task, unit, sums[0], scale, stage);
}

// Values, held in registers or, where these are needed for sums, in shared memory: each lane reads
// what it wrote itself.
template <int D, bool in_shared = (D > 64)>
struct ValueRows {
  static constexpr int kPacks = 0;  // of shared memory, for each warp
  Rows<D> rows;

  __device__ __forceinline__ void hold(const Rows<D>& from, uint4*) { rows = from; }
  __device__ __forceinline__ Fragment at(int k) const { return rows.step[k]; }
};

template <int D>
struct ValueRows<D, true> {
  static constexpr int kPacks = D / 16 * kWarpSize;
  uint4* own;

  __device__ __forceinline__ void hold(const Rows<D>& from, uint4* shared) {
    own = shared + warp_index() * kPacks + lane_index();
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const uint32_t (&word)[4] = from.step[k].word;
      store_vector(own + k * kWarpSize, make_uint4(word[0], word[1], word[2], word[3]));
    }
  }
  __device__ __forceinline__ Fragment at(int k) const {
    const uint4 pack = load_vector(own + k * kWarpSize);
    return {{pack.x, pack.y, pack.z, pack.w}};
  }
};

// From scores, which become probabilities, and products of dO and V, which become dS. Rows are
// keys, columns queries with these statistics: lse times log2(e), and delta.
template <int kUnits>
__device__ __forceinline__ void differentiate(Scores (&scores)[kUnits], Scores (&grad)[kUnits],
                                              const float2* statistics, float scale) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint4 pack = load_vector(statistics + lane_column(j, 0));
    const float lse[2] = {float_of_bits(pack.x), float_of_bits(pack.z)};
    const float delta[2] = {float_of_bits(pack.y), float_of_bits(pack.w)};
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& p = scores[u].value[j][e];
        p = exp2_fast(fmaf(p, scale, -lse[e % 2]));
        grad[u].value[j][e] = p * (grad[u].value[j][e] - delta[e % 2]);
      }
    }
  }
}

// Statistics of queries [first, first + kStreamed). Those of queries that do not exist make their
// probabilities zero.
__device__ __forceinline__ void fetch_statistics(float2* shared, const BackwardParameters& p,
                                                 const Task& task, int first) {
  const float2* from = p.statistics + task.head * p.n_tokens + task.first_token;
  for (int i = threadIdx.x; i < kStreamed; i += static_cast<int>(blockDim.x)) {
    shared[i] = first + i < task.length ? from[first + i] : make_float2(kInfinity, 0.0f);
  }
}

// dK and dV.
template <class T, int D>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 1)
    attention_key_gradient_kernel(const __grid_constant__ BackwardParameters p,
                                  const __grid_constant__ Schedule schedule) {
  const Task task = find_task<false>(schedule);
  const int unit = task.part * warp_count() + warp_index();
  constexpr int kFactor = kStreamed * kHeadPacks<D>;
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  uint4* held = shared + 4 * kFactor;
  uint4* stage = held + warp_count() * ValueRows<D>::kPacks + warp_index() * kStagePacks;
  auto* statistics =
      reinterpret_cast<float2*>(held + warp_count() * (ValueRows<D>::kPacks + kStagePacks));
  Rows<D> key, values;
  read_rows(key, p.k, task, unit);
  read_rows(values, p.v, task, unit);
  deal_rows(key, stage);
  deal_rows(values, stage);
  ValueRows<D> value;
  value.hold(values, held);
  Sums<D> key_sums[1], value_sums[1];
  key_sums[0].clear();
  value_sums[0].clear();
  stream_columns(
      task.length,
      [&](int buffer, int first) {
        uint4* queries = shared + 2 * buffer * kFactor;
        RowCopies<D, 2>({queries, queries + kFactor}, {&p.q, &p.grad_out}, task, first, INT32_MAX)
            .copy_until(kStreamed);
        fetch_statistics(statistics + buffer * kStreamed, p, task, first);
      },
      [&](int buffer, int first) {
        const uint4* queries = shared + 2 * buffer * kFactor;
#pragma unroll 1
        for (int c = 0; c < kStreamed && first + c < task.length; c += kUnit) {
          const uint4* query = queries + c * kHeadPacks<D>;
          Scores scores[1], grad[1];
          multiply<T, D>(scores, [&](int, int k) { return key.step[k]; }, dot_place<D>(query));
          multiply<T, D>(
              grad, [&](int, int k) { return value.at(k); }, dot_place<D>(query + kFactor));
          differentiate(scores, grad, statistics + buffer * kStreamed + c, p.scale_log2);
          const Fragment weights[1] = {as_factor<T>(scores[0])}, ds[1] = {as_factor<T>(grad[0])};
          add_weighted<T, D>(value_sums, weights, sum_place<D>(query + kFactor));
          add_weighted<T, D>(key_sums, ds, sum_place<D>(query));
        }
      });
  const float scale[2] = {p.scale, p.scale}, one[2] = {1.0f, 1.0f};
  store_rows<T>(p.dk, task, unit, key_sums[0], scale, stage);
  store_rows<T>(p.dv, task, unit, value_sums[0], one, stage);
}

}  // namespace franca::cuda
