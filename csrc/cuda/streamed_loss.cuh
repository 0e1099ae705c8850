// The clustering cross-entropy on scores that are never stored, forward and gradient.
#pragma once

#include "cuda/loss_parameters.cuh"
#include "cuda/streamed_kernels.cuh"

namespace franca::cuda {

struct StreamedLoss : LossParameters {
  ScoreFactors student;
  ScoreFactors teacher;
  Heads scores;  // of the student; its rows are the student's
};

// The targets of a tile of student rows: q = sum_p exp(z/T + a + b) over the teacher rows they
// meet, each product with the rows gathered as it is read.
template <class T>
__device__ __forceinline__ void target_tile(ScoreTile& q, ScoreTile& tile, uint4* shared,
                                            const StreamedLoss& p, TileColumns columns,
                                            int64_t first_row) {
  float scale[kLaneColumns], potential[kLaneColumns];
  load_columns(scale, p.teacher.scale[columns.head], p.scores, columns, 0.0f);
  load_columns(potential, p.prototype + p.scores.head[columns.head].first_column, p.scores, columns,
               -kInfinity);
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) score(q, r, c) = 0.0f;
  }
  for (int target = 0; target < p.n_targets; ++target) {
    // Negative: no such student row, or a teacher row that does not exist.
    const auto teacher_row = [&](int r) {
      return first_row + r < p.scores.n_rows ? p.teacher_row(first_row + r, target)
                                             : static_cast<int64_t>(-1);
    };
    score_tile<T>(tile, shared, p.teacher, p.scores, columns, teacher_row);
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const float offset = p.row_potential(columns.head, teacher_row(tile_row(r)));
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const float z = score(tile, r, c) * scale[c];
        const float main = fmaf(z, p.teacher_scale.high, potential[c]) + offset;
        score(q, r, c) += fast_exp(fmaf(z, p.teacher_scale.low, main));
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void student_tile(ScoreTile& tile, uint4* shared, const StreamedLoss& p,
                                             TileColumns columns, int64_t first_row) {
  score_tile<T>(tile, shared, p.student, p.scores, columns, [&](int r) {
    return first_row + r < p.scores.n_rows ? first_row + r : static_cast<int64_t>(-1);
  });
}

// partial[m, slice] = maximum and total of the log-sum-exp of s/t, and sum_k q s, over the slice
// blockIdx.y for the rows of tile blockIdx.x.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    streamed_forward_kernel(const __grid_constant__ StreamedLoss p, float4* partial) {
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  const Slice slice = find_slice(p.scores, blockIdx.y);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  RowSum sums[kLaneRows] = {};
  const int64_t end = slice.begin + smaller(slice.columns, kSliceColumns);
  for (int64_t first = slice.begin; first < end; first += kTileColumns) {
    const TileColumns columns{slice.head, first};
    ScoreTile q, tile;
    target_tile<T>(q, tile, shared, p, columns, first_row);
    student_tile<T>(tile, shared, p, columns, first_row);
    float scale[kLaneColumns];
    load_columns(scale, p.student.scale[slice.head], p.scores, columns, 0.0f);
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      float x[kLaneColumns];
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const float s = score(tile, r, c) * scale[c];
        sums[r].agreement = fmaf(score(q, r, c), s, sums[r].agreement);
        const bool exists = first + tile_column(c) < p.scores.head[slice.head].columns;
        x[c] = exists ? exponent(s, p.student_scale, 0.0f) : -kInfinity;
      }
      sums[r].sum.add(x);
    }
  }
  const RowSum sum = merge_across(sums, reinterpret_cast<float4*>(shared));
  const int64_t m = first_row + threadIdx.x;
  if (threadIdx.x >= kTileRows || m >= p.scores.n_rows) return;
  float4 part;
  part.x = sum.sum.maximum;
  part.y = sum.sum.total;
  part.z = sum.agreement;
  part.w = 0.0f;
  partial[m * p.scores.n_slices + blockIdx.y] = part;
}

// Gradient of the products <x, v> of one head (head 0 of p): out[m, k] = ds scale, with
// ds = grad w[m]/t (P softmax(s/t) - q), and scale_partial[row tile, k] = sum_m ds <x, v>.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    streamed_gradient_kernel(const __grid_constant__ StreamedLoss p, const float* grad_loss,
                             const float* lse, T* out, int64_t out_stride, float* scale_partial) {
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  const TileColumns columns = find_tile(p.scores, blockIdx.y);
  const int64_t n_columns = p.scores.head[0].columns;
  if (columns.first >= n_columns) return;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  ScoreTile q, tile;
  target_tile<T>(q, tile, shared, p, columns, first_row);
  student_tile<T>(tile, shared, p, columns, first_row);
  float scale[kLaneColumns];
  load_columns(scale, p.student.scale[0], p.scores, columns, 0.0f);
  LogSumExp scale_gradient[kLaneColumns];  // plain sums: the maximum stays 0
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) scale_gradient[c].maximum = 0.0f;
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const int64_t m = first_row + tile_row(r);
    if (m >= p.scores.n_rows) continue;
    const float factor = grad_loss[0] * p.weights[m] * p.student_scale.high;
    const float shift = -lse[m];
    float products[kLaneColumns];
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const float product = score(tile, r, c);
      const float softmax = fast_exp(exponent(product * scale[c], p.student_scale, shift));
      const bool exists = columns.first + tile_column(c) < n_columns;
      const float ds =
          exists ? factor * (static_cast<float>(p.n_targets) * softmax - score(q, r, c)) : 0.0f;
      scale_gradient[c].total = fmaf(ds, product, scale_gradient[c].total);
      products[c] = ds * scale[c];
    }
#pragma unroll
    for (int c = 0; c < kLaneColumns; c += 2) {
      const int64_t k = columns.first + tile_column(c);
      // Rows are padded to an even length, so the pair fits wherever its first element does.
      if (k < n_columns) {
        reinterpret_cast<uint32_t*>(out + m * out_stride + k)[0] =
            make_pair<T>(products[c], products[c + 1]);
      }
    }
  }
  merge_down(scale_gradient, reinterpret_cast<float2*>(shared));
  if (warp_down() != 0 || lane_index() >= 4) return;
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    const int64_t k = columns.first + tile_column(c);
    if (k < n_columns) scale_partial[blockIdx.x * n_columns + k] = scale_gradient[c].total;
  }
}

}  // namespace franca::cuda
