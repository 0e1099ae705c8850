// Half-steps of Sinkhorn-Knopp where each block holds a slice of the columns.
//
// Column results are accumulated in the registers of the thread that owns the columns. Row results
// are accumulated by one warp for each row and written for each slice; merge_rows adds the slices
// in a fixed order.
#pragma once

#include "cuda/logits.cuh"
#include "cuda/primitives/block.cuh"

namespace franca::cuda {

constexpr int kRowsInFlight = 4;

// Adds the rows [begin, end) of a thread's columns to their log-sum-exp.
template <class T>
__device__ __forceinline__ void add_columns(ScaledSum<T> (&sums)[kColumnsPerThread],
                                            const HeadView& head, int64_t column,
                                            InverseTemperature scale, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n += kRowsInFlight) {
    Columns<T> rows[kRowsInFlight];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      rows[r].load(row_of<T>(head, smaller(n + r, end - 1)) + column, head.columns - column,
                   head.vectors);
    }
    float z[kRowsInFlight][kColumnsPerThread];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) rows[r].get(z[r]);
    const auto count = static_cast<int>(smaller(end - n, kRowsInFlight));
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      float own[kRowsInFlight];
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) own[r] = z[r][c];
      sums[c].add(own, count, scale);
    }
  }
}

// Adds exp(z/T + potential + row[n]) of the rows [begin, end).
template <class T>
__device__ __forceinline__ void add_mass(float (&mass)[kColumnsPerThread], const HeadView& head,
                                         int64_t column, InverseTemperature scale,
                                         const float (&potential)[kColumnsPerThread],
                                         const float* row, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n += kRowsInFlight) {
    Columns<T> rows[kRowsInFlight];
    float offset[kRowsInFlight];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      rows[r].load(row_of<T>(head, smaller(n + r, end - 1)) + column, head.columns - column,
                   head.vectors);
      offset[r] = n + r < end ? row[n + r] : -kInfinity;
    }
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      float z[kColumnsPerThread];
      rows[r].get(z);
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        mass[c] += fast_exp(exponent_of<T>(z[c], scale, potential[c], offset[r]));
      }
    }
  }
}

// Calls body(x) for the exponents z/T + potential + offset of a lane's columns of one row, 8 at a
// time. The potentials are those that load_potentials put into shared memory.
template <class T, class Body>
__device__ __forceinline__ void for_row_exponents(const T* row, const HeadView& head,
                                                  int64_t slice_columns, InverseTemperature scale,
                                                  const float* potential, float offset,
                                                  const Body& body) {
  constexpr int kStep = kWarpSize * kColumnsPerThread, kInFlight = 4;
  for (int first = 0; first < kSliceColumns; first += kInFlight * kStep) {
    if (first >= slice_columns) break;
    Columns<T> columns[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int column = first + i * kStep + lane_index() * kColumnsPerThread;
      columns[i].load(row + column, slice_columns - column, head.vectors);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int column = first + i * kStep + lane_index() * kColumnsPerThread;
      float x[kColumnsPerThread];
      columns[i].get(x);
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        x[c] = exponent_of<T>(x[c], scale, potential[column + c], offset);
      }
      body(x);
    }
  }
}

// Maximum and total of the log-sum-exp of z/T + potential over a slice of one row. A guess of the
// row potential takes the place of the maximum, where the sum then lies in the range of floats.
template <class T>
__device__ __forceinline__ float2 row_partial(const T* row, const HeadView& head,
                                              int64_t slice_columns, InverseTemperature scale,
                                              const float* potential, float guess) {
  float total = 0.0f;
  for_row_exponents(row, head, slice_columns, scale, potential, guess,
                    [&](const float (&x)[kColumnsPerThread]) {
                      float sum = fast_exp(x[0]);
#pragma unroll
                      for (int c = 1; c < kColumnsPerThread; ++c) sum += fast_exp(x[c]);
                      total += sum;
                    });
  total = warp_sum(total);
  if (total >= kSmallestSum && total <= kLargestSum) return make_float2(-guess, total);
  LogSumExp sum;
  for_row_exponents(row, head, slice_columns, scale, potential, 0.0f,
                    [&](const float (&x)[kColumnsPerThread]) { sum.add(x); });
  sum.merge_warp();
  return make_float2(sum.maximum, sum.total);
}

// maximum and total [chunk, column] for each chunk of rows (blockIdx.y).
template <class T>
__global__ void __launch_bounds__(kThreads)
    column_logsumexp_kernel(const __grid_constant__ Heads heads, InverseTemperature scale,
                            int64_t n_valid, int64_t rows, float* maximum, float* total) {
  const Slice slice = find_slice(heads, blockIdx.x);
  const int64_t offset = threadIdx.x * kColumnsPerThread;
  if (offset >= slice.columns) return;
  const HeadView& head = heads.head[slice.head];
  ScaledSum<T> sums[kColumnsPerThread];
  const int64_t begin = blockIdx.y * rows;
  add_columns<T>(sums, head, slice.begin + offset, scale, begin, smaller(begin + rows, n_valid));
  const int64_t first = blockIdx.y * heads.n_columns + head.first_column + slice.begin + offset;
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) {
    if (offset + c < slice.columns) {
      const LogSumExp sum = sums[c].logsumexp(scale);
      maximum[first + c] = sum.maximum;
      total[first + c] = sum.total;
    }
  }
}

// partial[n, slice] = maximum and total of the log-sum-exp of z/T + potential over the slice.
template <class T>
__global__ void __launch_bounds__(kThreads)
    row_partials_kernel(const __grid_constant__ Heads heads, InverseTemperature scale,
                        int64_t n_valid, int64_t rows, const float* prototype, const float* guess,
                        float2* partial) {
  float* potential = reinterpret_cast<float*>(shared_memory());
  const Slice slice = find_slice(heads, blockIdx.x);
  const HeadView& head = heads.head[slice.head];
  load_potentials(potential, prototype + head.first_column + slice.begin, slice.columns);
  block_barrier();
  const int64_t begin = blockIdx.y * rows, end = smaller(begin + rows, n_valid);
  for (int64_t n = begin + warp_index(); n < end; n += kWarps) {
    const float2 part =
        row_partial(row_of<T>(head, n) + slice.begin, head, slice.columns, scale, potential,
                    guess == nullptr ? 0.0f : guess[slice.head * heads.n_rows + n]);
    if (lane_index() == 0) partial[n * heads.n_slices + blockIdx.x] = part;
  }
}

// mass[chunk, column] for each chunk of rows (blockIdx.y).
template <class T>
__global__ void __launch_bounds__(kThreads)
    column_mass_kernel(const __grid_constant__ Heads heads, InverseTemperature scale,
                       int64_t n_valid, int64_t rows, const float* prototype, const float* row,
                       float* mass) {
  const Slice slice = find_slice(heads, blockIdx.x);
  const int64_t offset = threadIdx.x * kColumnsPerThread;
  if (offset >= slice.columns) return;
  const HeadView& head = heads.head[slice.head];
  const int64_t column = slice.begin + offset;
  float potential[kColumnsPerThread], sums[kColumnsPerThread] = {};
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) {
    const bool exists = offset + c < slice.columns;
    potential[c] = exists ? prototype[head.first_column + column + c] : 0.0f;
  }
  const int64_t begin = blockIdx.y * rows;
  add_mass<T>(sums, head, column, scale, potential, row + slice.head * heads.n_rows, begin,
              smaller(begin + rows, n_valid));
  const int64_t first = blockIdx.y * heads.n_columns + head.first_column + column;
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) {
    if (offset + c < slice.columns) mass[first + c] = sums[c];
  }
}

struct Outputs {
  float* head[kMaxHeads];
};

// out[h][n, k] = exp(z/T + potential - maximum) / total, 0 for padding rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    assignments_kernel(const __grid_constant__ Heads heads, InverseTemperature scale,
                       int64_t n_valid, int64_t rows, const float* prototype,
                       const float2* normaliser, const __grid_constant__ Outputs out) {
  float* potential = reinterpret_cast<float*>(shared_memory());
  const Slice slice = find_slice(heads, blockIdx.x);
  const HeadView& head = heads.head[slice.head];
  load_potentials(potential, prototype + head.first_column + slice.begin, slice.columns);
  block_barrier();
  const int64_t begin = blockIdx.y * rows, end = smaller(begin + rows, heads.n_rows);
  for (int64_t n = begin + warp_index(); n < end; n += kWarps) {
    const T* from = row_of<T>(head, n) + slice.begin;
    float* to = out.head[slice.head] + n * head.columns + slice.begin;
    const bool vectors = reinterpret_cast<std::uintptr_t>(to) % kPackBytes == 0;
    const float2 norm = normaliser[slice.head * heads.n_rows + n];
    const float factor = 1.0f / norm.y;
    for (int column = lane_index() * kPack<float>; column < smaller(kSliceColumns, slice.columns);
         column += kWarpSize * kPack<float>) {
      float q[kPack<float>] = {};
#pragma unroll
      for (int c = 0; c < kPack<float>; ++c) {
        if (n < n_valid && column + c < slice.columns) {
          const float x = exponent(to_float(from[column + c]), scale, potential[column + c]);
          q[c] = fast_exp(x - norm.x) * factor;
        }
      }
      store_pack(to + column, q, slice.columns - column, vectors);
    }
  }
}

}  // namespace franca::cuda
