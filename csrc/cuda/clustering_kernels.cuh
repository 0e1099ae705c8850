// Clustering cross-entropy from stored logits. Blocks hold a slice of the columns and its prototype
// potentials; one warp takes one student row, and rebuilds its targets from the teacher rows.
#pragma once

#include <type_traits>

#include "cuda/loss_parameters.cuh"
#include "cuda/primitives/block.cuh"

namespace franca::cuda {

// Registers for three blocks on a multiprocessor: rows of logits are read while others are waited
// for.
constexpr int kBlocksOfLoss = 3;
// Groups of neighbouring columns that a lane reads at a time: what 128 bytes hold of all rows.
template <class S, class Z, int kTargets>
constexpr int kGroupsInFlight =
    128 / kColumnsPerThread / (sizeof(S) + (kTargets == 1 ? 1 : 2) * sizeof(Z));

struct ClusteringParameters : LossParameters {
  Heads student;
  Heads teacher;
  int64_t rows_per_chunk;
};

// The teacher rows that a student row meets: as many as the kernel was made for, or any number,
// which is 0 here, and then looked up again at each group of columns.
template <class Z, int kTargets>
struct Targets {
  const Z* row[kTargets > 0 ? kTargets : 1];
  float offset[kTargets > 0 ? kTargets : 1];

  __device__ __forceinline__ void load(const ClusteringParameters& p, int h, int64_t m) {
#pragma unroll
    for (int target = 0; target < kTargets; ++target) set(target, p, h, m, target);
  }

  __device__ __forceinline__ void set(int place, const ClusteringParameters& p, int h, int64_t m,
                                      int target) {
    const int64_t n = p.teacher_row(m, target);
    offset[place] = p.row_potential(h, n);
    row[place] = row_of<Z>(p.teacher.head[h], n < 0 ? 0 : n);
  }
};

// Adds exp(z/T + a + b) of a lane's columns to q.
template <class Z>
__device__ __forceinline__ void add_targets(float (&q)[kColumnsPerThread],
                                            const Columns<Z>& columns, InverseTemperature scale,
                                            const float* potential, float offset) {
  float z[kColumnsPerThread];
  columns.get(z);
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) {
    q[c] += fast_exp(exponent_of<Z>(z[c], scale, potential[c], offset));
  }
}

// Calls body(offset, student logits, q) for each group of neighbouring columns of this lane,
// counted from the slice's first column, with q[k] = sum_p exp(z[rows[m,p],k]/T + a[k] +
// b[rows[m,p]]). `whole`: the slice is full and rows start at multiples of 16 bytes. `read_only`:
// nobody writes the student's logits while the kernel runs.
template <class S, class Z, int kTargets, bool whole, bool read_only, class Body>
__device__ __forceinline__ void for_lane_columns(const ClusteringParameters& p, const Slice& slice,
                                                 int64_t m, const Targets<Z, kTargets>& targets,
                                                 const float* potential, const Body& body) {
  constexpr int kStep = kWarpSize * kColumnsPerThread,
                kInFlight = whole ? kGroupsInFlight<S, Z, kTargets> : 1;
  const HeadView& head = p.student.head[slice.head];
  const HeadView& other = p.teacher.head[slice.head];
  const S* row = row_of<S>(head, m) + slice.begin;
#pragma unroll 1
  for (int first = lane_index() * kColumnsPerThread; first < kSliceColumns;
       first += kInFlight * kStep) {
    if (!whole && first >= slice.columns) return;
    Columns<S> own[kInFlight];
    Columns<Z> met[kInFlight][kTargets > 0 ? kTargets : 1];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int offset = first + i * kStep;
      const int64_t left = whole ? kColumnsPerThread : slice.columns - offset;
      own[i].template load<read_only>(row + offset, left, whole || head.vectors);
#pragma unroll
      for (int t = 0; t < kTargets; ++t) {
        met[i][t].load(targets.row[t] + slice.begin + offset, left, whole || other.vectors);
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int offset = first + i * kStep;
      const int64_t left = whole ? kColumnsPerThread : slice.columns - offset;
      if (!whole && left <= 0) return;
      float s[kColumnsPerThread], q[kColumnsPerThread] = {};
      own[i].get(s);
#pragma unroll
      for (int t = 0; t < kTargets; ++t) {
        add_targets(q, met[i][t], p.teacher_scale, potential + offset, targets.offset[t]);
      }
      for (int t = 0; kTargets == 0 && t < p.n_targets; ++t) {
        Targets<Z, kTargets> target;
        target.set(0, p, slice.head, m, t);
        met[i][0].load(target.row[0] + slice.begin + offset, left, whole || other.vectors);
        add_targets(q, met[i][0], p.teacher_scale, potential + offset, target.offset[0]);
      }
      body(offset, s, q);
    }
  }
}

// Calls body(m, targets) for each student row of this warp in the block's chunk of rows. The
// teacher rows of the next one are looked up meanwhile.
template <class Z, int kTargets, class Body>
__device__ __forceinline__ void for_student_rows(const ClusteringParameters& p, int h,
                                                 const Body& body) {
  const int64_t begin = blockIdx.y * p.rows_per_chunk;
  const int64_t end = smaller(begin + p.rows_per_chunk, p.student.n_rows);
  int64_t m = begin + warp_index();
  if (m >= end) return;
  Targets<Z, kTargets> next;
  next.load(p, h, m);
  for (; m < end; m += kWarps) {
    const Targets<Z, kTargets> targets = next;
    if (m + kWarps < end) next.load(p, h, m + kWarps);
    body(m, targets);
  }
}

// Whether no row of the slice has a column that does not exist or a pack that is not aligned.
__device__ __forceinline__ bool is_whole(const Slice& slice, const HeadView& student,
                                         const HeadView& teacher) {
  return slice.columns >= kSliceColumns && student.vectors && teacher.vectors;
}

// partial[m, slice] = maximum and total of the log-sum-exp of s/t, and sum_k q s.
template <class S, class Z, int kTargets, bool whole>
__device__ __forceinline__ void write_forward_partial(const ClusteringParameters& p,
                                                      const Slice& slice, int64_t m,
                                                      const Targets<Z, kTargets>& targets,
                                                      const float* potential, float4* partial) {
  ScaledSum<S> sum;
  float agreement = 0.0f;
  for_lane_columns<S, Z, kTargets, whole, true>(
      p, slice, m, targets, potential,
      [&](int offset, float (&s)[kColumnsPerThread], const float (&q)[kColumnsPerThread]) {
#pragma unroll
        for (int c = 0; c < kColumnsPerThread; ++c) agreement = fmaf(q[c], s[c], agreement);
        const int64_t left = whole ? kColumnsPerThread : slice.columns - offset;
        sum.add(s, static_cast<int>(smaller(left, kColumnsPerThread)), p.student_scale);
      });
  LogSumExp all = sum.logsumexp(p.student_scale);
  all.merge_warp();
  agreement = warp_sum(agreement);
  if (lane_index() != 0) return;
  partial[m * p.student.n_slices + blockIdx.x] =
      make_float4(all.maximum, all.total, agreement, 0.0f);
}

template <class S, class Z, int kTargets>
__global__ void __launch_bounds__(kThreads, kBlocksOfLoss)
    clustering_forward_kernel(const __grid_constant__ ClusteringParameters p, float4* partial) {
  float* potential = reinterpret_cast<float*>(shared_memory());
  const Slice slice = find_slice(p.student, blockIdx.x);
  const HeadView& head = p.student.head[slice.head];
  load_potentials(potential, p.prototype + head.first_column + slice.begin, slice.columns);
  block_barrier();
  // Decided outside of the loops, which leaves them more registers.
  const auto rows = [&](auto whole) {
    for_student_rows<Z, kTargets>(p, slice.head,
                                  [&](int64_t m, const Targets<Z, kTargets>& targets) {
                                    write_forward_partial<S, Z, kTargets, decltype(whole)::value>(
                                        p, slice, m, targets, potential, partial);
                                  });
  };
  if (is_whole(slice, head, p.teacher.head[slice.head])) {
    rows(std::true_type{});
  } else {
    rows(std::false_type{});
  }
}

// gradient = grad[h] w[m]/t (P softmax(s/t) - q). The gradient may overwrite the student.
template <class S, class Z, int kTargets, bool whole>
__device__ __forceinline__ void write_gradient(const ClusteringParameters& p, const Slice& slice,
                                               int64_t m, const Targets<Z, kTargets>& targets,
                                               const float* potential, const HeadView& gradient,
                                               float factor, float lse) {
  S* out = row_of<S>(gradient, m) + slice.begin;
  factor *= p.weights[m] * p.student_scale.high;
  const float softmax_factor = factor * static_cast<float>(p.n_targets);
  for_lane_columns<S, Z, kTargets, whole, false>(
      p, slice, m, targets, potential,
      [&](int offset, float (&s)[kColumnsPerThread], const float (&q)[kColumnsPerThread]) {
#pragma unroll
        for (int c = 0; c < kColumnsPerThread; ++c) {
          const float softmax = fast_exp(exponent_of<S>(s[c], p.student_scale, -lse));
          s[c] = fmaf(softmax_factor, softmax, -factor * q[c]);
        }
        const int64_t left = whole ? kColumnsPerThread : slice.columns - offset;
        Columns<S>::store(out + offset, s, left, whole || gradient.vectors);
      });
}

template <class S, class Z, int kTargets>
__global__ void __launch_bounds__(kThreads, kBlocksOfLoss)
    clustering_backward_kernel(const __grid_constant__ ClusteringParameters p,
                               const __grid_constant__ Heads gradient, const float* grad_loss,
                               const float* lse) {
  float* potential = reinterpret_cast<float*>(shared_memory());
  const Slice slice = find_slice(p.student, blockIdx.x);
  const HeadView& head = p.student.head[slice.head];
  const HeadView& target = gradient.head[slice.head];
  load_potentials(potential, p.prototype + head.first_column + slice.begin, slice.columns);
  block_barrier();
  const float factor = grad_loss[slice.head];
  const auto rows = [&](auto whole) {
    for_student_rows<Z, kTargets>(p, slice.head,
                                  [&](int64_t m, const Targets<Z, kTargets>& targets) {
                                    const float own = lse[slice.head * p.student.n_rows + m];
                                    write_gradient<S, Z, kTargets, decltype(whole)::value>(
                                        p, slice, m, targets, potential, target, factor, own);
                                  });
  };
  if (is_whole(slice, head, p.teacher.head[slice.head]) && target.vectors) {
    rows(std::true_type{});
  } else {
    rows(std::false_type{});
  }
}

}  // namespace franca::cuda
