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

// With so few rows one block per slice fills the device and no row needs to stay on chip. Two
// groups of threads share the rows, or too few threads would wait for memory at a time.
constexpr int kFewRows = 64;
constexpr int kRowGroups = 2;
constexpr int kIterationThreads = kRowGroups * kThreads;

// Adds the rows [begin, end) of a thread's columns to their log-sum-exp.
template <class T>
__device__ __forceinline__ void add_columns(LogSumExp (&sums)[kColumnsPerThread],
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
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      float x[kRowsInFlight];
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        x[r] = n + r < end ? exponent(z[r][c], scale, 0.0f) : -kInfinity;
      }
      sums[c].add(x);
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
        const float main = fmaf(z[c], scale.high, potential[c]) + offset[r];
        mass[c] += fast_exp(fmaf(z[c], scale.low, main));
      }
    }
  }
}

// partial[n, slice] = log-sum-exp of z/T + potential over the slice, for rows [begin, end). The
// potentials are those that load_potentials put into shared memory.
template <class T, int warps = kWarps>
__device__ __forceinline__ void write_row_partials(float2* partial, const Heads& heads,
                                                   const Slice& slice, int64_t slice_index,
                                                   InverseTemperature scale, const float* potential,
                                                   int64_t begin, int64_t end) {
  constexpr int kStep = kWarpSize * kColumnsPerThread, kInFlight = 4;
  const HeadView& head = heads.head[slice.head];
  for (int64_t n = begin + warp_index(); n < end; n += warps) {
    const T* row = row_of<T>(head, n) + slice.begin;
    LogSumExp sum;
    for (int first = 0; first < kSliceColumns; first += kInFlight * kStep) {
      if (first >= slice.columns) break;
      Columns<T> columns[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int column = first + i * kStep + lane_index() * kColumnsPerThread;
        columns[i].load(row + column, slice.columns - column, head.vectors);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int column = first + i * kStep + lane_index() * kColumnsPerThread;
        float x[kColumnsPerThread];
        columns[i].get(x);
#pragma unroll
        for (int c = 0; c < kColumnsPerThread; ++c) {
          x[c] = exponent(x[c], scale, potential[column + c]);
        }
        sum.add(x);
      }
    }
    sum.merge_warp();
    if (lane_index() == 0) {
      partial[n * heads.n_slices + slice_index] = make_float2(sum.maximum, sum.total);
    }
  }
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
  LogSumExp sums[kColumnsPerThread];
  const int64_t begin = blockIdx.y * rows;
  add_columns<T>(sums, head, slice.begin + offset, scale, begin, smaller(begin + rows, n_valid));
  const int64_t first = blockIdx.y * heads.n_columns + head.first_column + slice.begin + offset;
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) {
    if (offset + c < slice.columns) {
      maximum[first + c] = sums[c].maximum;
      total[first + c] = sums[c].total;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    row_partials_kernel(const __grid_constant__ Heads heads, InverseTemperature scale,
                        int64_t n_valid, int64_t rows, const float* prototype, float2* partial) {
  float* potential = reinterpret_cast<float*>(shared_memory());
  const Slice slice = find_slice(heads, blockIdx.x);
  load_potentials(potential, prototype + heads.head[slice.head].first_column + slice.begin,
                  slice.columns);
  block_barrier();
  const int64_t begin = blockIdx.y * rows;
  write_row_partials<T>(partial, heads, slice, blockIdx.x, scale, potential, begin,
                        smaller(begin + rows, n_valid));
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
    potential[c] = offset + c < slice.columns ? prototype[head.first_column + column + c] : 0.0f;
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

// Shared memory of iteration_kernel.
struct IterationMemory {
  float potential[kSliceColumns];
  float2 sums[(kRowGroups - 1) * kSliceColumns];  // of the row groups but the first
  float row[kFewRows];
};

// One whole iteration for few rows: the row potentials of the last iteration from its partials
// (none in the first one), the column half-step, and the row partials of this one. The slice comes
// from memory once and from the caches the second time.
template <class T, bool first>
__global__ void __launch_bounds__(kIterationThreads, 1)
    iteration_kernel(const __grid_constant__ Heads heads, InverseTemperature scale, int64_t n_valid,
                     const float2* last_partial, float* prototype, float2* partial) {
  auto& shared = *reinterpret_cast<IterationMemory*>(shared_memory());
  const Slice slice = find_slice(heads, blockIdx.x);
  const HeadView& head = heads.head[slice.head];
  const int thread = threadIdx.x % kThreads, group = threadIdx.x / kThreads;
  const int64_t offset = thread * kColumnsPerThread, column = slice.begin + offset;
  float* own = prototype + head.first_column + column;
  float potential[kColumnsPerThread] = {};
  LogSumExp sums[kColumnsPerThread];
  const int64_t share = (n_valid + kRowGroups - 1) / kRowGroups;
  const int64_t begin = group * share, end = smaller(begin + share, n_valid);
  if constexpr (first) {
    if (offset < slice.columns) add_columns<T>(sums, head, column, scale, begin, end);
  } else {
    for (int64_t n = warp_index(); n < n_valid; n += kRowGroups * kWarps) {
      const LogSumExp sum = merge_slices(heads, slice.head, n, last_partial);
      if (lane_index() == 0) shared.row[n] = -(sum.maximum + logf(sum.total));
    }
    float mass[kColumnsPerThread] = {};
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      if (offset + c < slice.columns) potential[c] = own[c];
    }
    block_barrier();
    if (offset < slice.columns) {
      add_mass<T>(mass, head, column, scale, potential, shared.row, begin, end);
    }
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) sums[c] = {0.0f, mass[c]};
  }
  if (group > 0) {
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      shared.sums[(group - 1) * kSliceColumns + c * kThreads + thread] =
          make_float2(sums[c].maximum, sums[c].total);
    }
  }
  block_barrier();
  if (group == 0) {
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      for (int g = 1; g < kRowGroups; ++g) {
        const float2 other = shared.sums[(g - 1) * kSliceColumns + c * kThreads + thread];
        sums[c].merge({other.x, other.y});
      }
      if (sums[c].total > 0.0f) potential[c] -= sums[c].maximum + logf(sums[c].total);
      const bool exists = offset + c < slice.columns;
      if (exists) own[c] = potential[c];
      shared.potential[offset + c] = exists ? potential[c] : -kInfinity;
    }
  }
  block_barrier();
  write_row_partials<T, kRowGroups * kWarps>(partial, heads, slice, blockIdx.x, scale,
                                             shared.potential, 0, n_valid);
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
