// softmax(scale q k^T) v. Short sequences lie wholly in shared memory and their scores in
// registers, so that the softmax needs one pass; long ones are streamed with a running maximum.
#pragma once

#include "cuda/attention_tile.cuh"

namespace franca::cuda {

struct ForwardParameters {
  Packed q, k, v, out;
  float* lse;   // [tokens, heads]
  float scale;  // times log2(e)
};

// Running softmax of the two rows that a lane holds; totals are those of the lane's own columns.
struct Softmax {
  float maximum[2] = {-kInfinity, -kInfinity};  // of the scaled scores
  float total[2] = {0.0f, 0.0f};
};

// Scores as multiples of log2(e); columns from `left` on do not exist.
__device__ __forceinline__ void scale_scores(Scores& scores, float scale, int left) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool exists = lane_column(j, e) < left;
      scores.value[j][e] = exists ? scores.value[j][e] * scale : -kInfinity;
    }
  }
}

__device__ __forceinline__ void add_maximum(float (&maximum)[2], const Scores& scores) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) maximum[e / 2] = fmaxf(maximum[e / 2], scores.value[j][e]);
  }
}

__device__ __forceinline__ void exponentiate(Scores& scores, Softmax& softmax) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores.value[j][e] = exp2_fast(scores.value[j][e] - softmax.maximum[e / 2]);
      softmax.total[e / 2] += scores.value[j][e];
    }
  }
}

// Divides by the totals and stores rows and their log-sum-exp.
template <class T, int D>
__device__ __forceinline__ void finish_rows(const ForwardParameters& p, const Schedule& schedule,
                                            const Task& task, int unit, const Sums<D>& sums,
                                            const Softmax& softmax) {
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = warp_sum<4>(softmax.total[half]);
    factor[half] = 1.0f / total;
    const int row = lane_row(unit, half);
    if (lane_index() % 4 == 0 && row < task.length) {
      p.lse[(task.first_token + row) * schedule.n_heads + task.head] =
          softmax.maximum[half] * kLn2 + logf(total);
    }
  }
  store_rows<T>(p.out, task, unit, sums, factor);
}

// One block has a whole sequence of up to `kUnits` times 16 tokens.
template <class T, int D, int kUnits>
__device__ __forceinline__ void attend_once(const ForwardParameters& p, const Schedule& schedule,
                                            const Task& task, int unit, const uint4* keys,
                                            const uint4* values) {
  const int units = units_of(task.length);
  Scores scores[kUnits];
  Softmax softmax;
  {
    HeldRows<D, false> queries;
    load_rows(queries, nullptr, p.q, task, unit);
#pragma unroll
    for (int c = 0; c < kUnits; ++c) {
      if (c >= units) continue;
      multiply<T>(scores[c], queries, keys, c * kUnit);
      scale_scores(scores[c], p.scale, task.length - c * kUnit);
      add_maximum(softmax.maximum, scores[c]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    softmax.maximum[half] = warp_maximum<4>(softmax.maximum[half]);
  }
  Sums<D> sums;
  sums.clear();
#pragma unroll
  for (int c = 0; c < kUnits; ++c) {
    if (c >= units) continue;
    exponentiate(scores[c], softmax);
    add_weighted<T>(sums, as_factor<T>(scores[c]), values, c * kUnit);
  }
  finish_rows<T>(p, schedule, task, unit, sums, softmax);
}

template <class T, int D, int kUnits>
__global__ void __launch_bounds__((kUnits < kMostWarps ? kUnits : kMostWarps) * kWarpSize,
                                  kUnits < kMostWarps ? 256 / D : 1)
    attention_forward_kernel(const __grid_constant__ ForwardParameters p,
                             const __grid_constant__ Schedule schedule) {
  const Task task = find_task(schedule);
  const int units = units_of(task.length), rows = units * kUnit;
  auto* keys = reinterpret_cast<uint4*>(shared_memory());
  uint4* values = keys + rows * kHeadPacks<D>;
  fetch_rows<D>(keys, p.k, task, 0, rows);
  fetch_rows<D>(values, p.v, task, 0, rows);
  commit_copies();
  wait_for_copies<0>();
  block_barrier();
#pragma unroll 1
  for (int unit = warp_index(); unit < units; unit += warp_count()) {
    attend_once<T, D, kUnits>(p, schedule, task, unit, keys, values);
  }
}

// Adds kStreamed keys, of which `left` exist.
template <class T, int D>
__device__ __forceinline__ void attend_streamed(Sums<D>& sums, Softmax& softmax,
                                                const HeldRows<D, false>& queries, float scale,
                                                const uint4* keys, const uint4* values, int left) {
  constexpr int kUnits = kStreamed / kUnit;
  Scores scores[kUnits];
  float maximum[2] = {softmax.maximum[0], softmax.maximum[1]};
#pragma unroll
  for (int c = 0; c < kUnits; ++c) {
    if (c * kUnit >= left) continue;
    multiply<T>(scores[c], queries, keys, c * kUnit);
    scale_scores(scores[c], scale, left - c * kUnit);
    add_maximum(maximum, scores[c]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    maximum[half] = warp_maximum<4>(maximum[half]);
    const float factor = exp2_fast(softmax.maximum[half] - maximum[half]);
    softmax.maximum[half] = maximum[half];
    softmax.total[half] *= factor;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      sums.value[j][2 * half] *= factor;
      sums.value[j][2 * half + 1] *= factor;
    }
  }
#pragma unroll
  for (int c = 0; c < kUnits; ++c) {
    if (c * kUnit >= left) continue;
    exponentiate(scores[c], softmax);
    add_weighted<T>(sums, as_factor<T>(scores[c]), values, c * kUnit);
  }
}

// One block has kUnit queries for each warp; keys and values pass by in two alternating buffers.
template <class T, int D>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 128 / D)
    attention_forward_streamed_kernel(const __grid_constant__ ForwardParameters p,
                                      const __grid_constant__ Schedule schedule) {
  const Task task = find_task(schedule);
  const int unit = task.first_unit + warp_index();
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  constexpr int kFactor = kStreamed * kHeadPacks<D>;
  HeldRows<D, false> queries;
  load_rows(queries, nullptr, p.q, task, unit);
  Softmax softmax;
  Sums<D> sums;
  sums.clear();
  stream_columns(
      task.length,
      [&](int buffer, int first) {
        fetch_rows<D>(shared + 2 * buffer * kFactor, p.k, task, first, kStreamed);
        fetch_rows<D>(shared + (2 * buffer + 1) * kFactor, p.v, task, first, kStreamed);
      },
      [&](int buffer, int first) {
        const uint4* keys = shared + 2 * buffer * kFactor;
        attend_streamed<T>(sums, softmax, queries, p.scale, keys, keys + kFactor,
                           task.length - first);
      });
  finish_rows<T>(p, schedule, task, unit, sums, softmax);
}

}  // namespace franca::cuda
