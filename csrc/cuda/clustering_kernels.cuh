// Clustering cross-entropy from stored logits. Blocks hold a slice of the columns and its prototype
// potentials; one warp takes one student row, and rebuilds its targets from the teacher rows.
#pragma once

#include "cuda/loss_parameters.cuh"
#include "cuda/primitives/block.cuh"

namespace franca::cuda {

// Left to itself the compiler takes fewer registers than the backward pass needs, and spills.
constexpr int kBlocksForBackward = 3;

struct ClusteringParameters : LossParameters {
  Heads student;
  Heads teacher;
  int64_t rows_per_chunk;
};

// q[k] = sum_p exp(z[rows[m,p],k]/T + a[k] + b[rows[m,p]]) of a lane's columns.
template <class Z>
__device__ __forceinline__ void rebuild_targets(float (&q)[kColumnsPerThread],
                                                const ClusteringParameters& p, int h, int64_t m,
                                                int64_t column, const float* potential) {
  const HeadView& head = p.teacher.head[h];
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) q[c] = 0.0f;
  for (int target = 0; target < p.n_targets; ++target) {
    const int64_t n = p.teacher_row(m, target);
    const float offset = p.row_potential(h, n);
    Columns<Z> columns;
    columns.load(row_of<Z>(head, n < 0 ? 0 : n) + column, head.columns - column, head.vectors);
    float z[kColumnsPerThread];
    columns.get(z);
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      const float main = fmaf(z[c], p.teacher_scale.high, potential[c]) + offset;
      q[c] += fast_exp(fmaf(z[c], p.teacher_scale.low, main));
    }
  }
}

// Calls body(student row) for each row of this warp in the block's chunk of rows (blockIdx.y).
template <class Body>
__device__ __forceinline__ void for_student_rows(const ClusteringParameters& p, Body body) {
  const int64_t begin = blockIdx.y * p.rows_per_chunk;
  const int64_t end = smaller(begin + p.rows_per_chunk, p.student.n_rows);
  for (int64_t m = begin + warp_index(); m < end; m += kWarps) body(m);
}

// Calls body(offset) for each group of neighbouring columns of this lane, counted from the slice's
// first column.
template <class Body>
__device__ __forceinline__ void for_lane_columns(const Slice& slice, Body body) {
  constexpr int kStep = kWarpSize * kColumnsPerThread;
  const auto end = static_cast<int>(smaller(kSliceColumns, slice.columns));
#pragma unroll 2
  for (int offset = lane_index() * kColumnsPerThread; offset < end; offset += kStep) body(offset);
}

// partial[m, slice] = maximum and total of the log-sum-exp of s/t, and sum_k q s.
template <class S, class Z>
__global__ void __launch_bounds__(kThreads)
    clustering_forward_kernel(const __grid_constant__ ClusteringParameters p, float4* partial) {
  float* potential = reinterpret_cast<float*>(shared_memory());
  const Slice slice = find_slice(p.student, blockIdx.x);
  const HeadView& head = p.student.head[slice.head];
  load_potentials(potential, p.prototype + head.first_column + slice.begin, slice.columns);
  block_barrier();
  for_student_rows(p, [&](int64_t m) {
    const S* row = row_of<S>(head, m) + slice.begin;
    LogSumExp sum;
    float agreement = 0.0f;
    for_lane_columns(slice, [&](int offset) {
      Columns<S> columns;
      columns.load(row + offset, slice.columns - offset, head.vectors);
      float q[kColumnsPerThread], s[kColumnsPerThread];
      rebuild_targets<Z>(q, p, slice.head, m, slice.begin + offset, potential + offset);
      columns.get(s);
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        agreement = fmaf(q[c], s[c], agreement);
        const float x = exponent(s[c], p.student_scale, 0.0f);
        s[c] = offset + c < slice.columns ? x : -kInfinity;
      }
      sum.add(s);
    });
    sum.merge_warp();
    agreement = warp_sum(agreement);
    if (lane_index() == 0) {
      float4 part;
      part.x = sum.maximum;
      part.y = sum.total;
      part.z = agreement;
      part.w = 0.0f;
      partial[m * p.student.n_slices + blockIdx.x] = part;
    }
  });
}

// gradient = grad[h] w[m]/t (P softmax(s/t) - q). The gradient may overwrite the student.
template <class S, class Z>
__global__ void __launch_bounds__(kThreads, kBlocksForBackward)
    clustering_backward_kernel(const __grid_constant__ ClusteringParameters p,
                               const __grid_constant__ Heads gradient, const float* grad_loss,
                               const float* lse) {
  float* potential = reinterpret_cast<float*>(shared_memory());
  const Slice slice = find_slice(p.student, blockIdx.x);
  const HeadView& head = p.student.head[slice.head];
  const HeadView& target = gradient.head[slice.head];
  load_potentials(potential, p.prototype + head.first_column + slice.begin, slice.columns);
  block_barrier();
  for_student_rows(p, [&](int64_t m) {
    const S* row = row_of<S>(head, m) + slice.begin;
    S* out = row_of<S>(target, m) + slice.begin;
    const float factor = grad_loss[slice.head] * p.weights[m] * p.student_scale.high;
    const float softmax_factor = factor * static_cast<float>(p.n_targets);
    const float shift = -lse[slice.head * p.student.n_rows + m];
    for_lane_columns(slice, [&](int offset) {
      Columns<S> columns;
      columns.template load<false>(row + offset, slice.columns - offset, head.vectors);
      float q[kColumnsPerThread], s[kColumnsPerThread];
      rebuild_targets<Z>(q, p, slice.head, m, slice.begin + offset, potential + offset);
      columns.get(s);
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        s[c] = softmax_factor * fast_exp(exponent(s[c], p.student_scale, shift)) - factor * q[c];
      }
      Columns<S>::store(out + offset, s, slice.columns - offset, target.vectors);
    });
  });
}

}  // namespace franca::cuda
