// Sinkhorn-Knopp of few rows. A block has a slice of the columns and as many of its rows on chip as
// there is room for, in shared memory and registers, from the first iteration to the last: 16-bit
// logits are read once, those of float32 in part again in each pass.
//
// A thread owns 8 neighbouring columns of half the rows. Column results stay within two threads;
// row results are added up over the warps of the block and, through memory, over the blocks of the
// head. Where the blocks cannot all run at the same time, each iteration is a launch of its own.
#pragma once

#include "cuda/logits.cuh"
#include "cuda/primitives/block.cuh"

namespace franca::cuda {

constexpr int kFewRows = 64;
constexpr int kRowGroups = 2;
constexpr int kGroupRows = kFewRows / kRowGroups;
constexpr int kFewRowsThreads = kRowGroups * kThreads;
// Rows are taken in batches: the registers hold one of 16-bit logits, shared memory the others.
constexpr int kBatchRows = 8;
constexpr int kBatches = kGroupRows / kBatchRows;

struct FewRowsMemory {
  float potential[kSliceColumns];
  float2 sums[kSliceColumns];                                // of the second group's columns
  float2 row_sums[kFewRowsThreads / kWarpSize][kGroupRows];  // of each warp
  float row[kFewRows];                                       // potentials
};

template <class T>
constexpr std::size_t kBatchBytes =
    static_cast<std::size_t>(kFewRowsThreads) * kBatchRows * kColumnsPerThread * sizeof(T);

struct FewRowsParameters {
  Heads heads;
  InverseTemperature scale;
  int n_valid;
  int shared_batches;  // of each group
  int first_iteration, end_iteration;
  bool finish;  // write the row potentials at the end
  float* prototype;
  float2* partial[2];  // [n, slice], maximum and total, in turn
  float* row;
};

template <class T>
struct Batch {
  Columns<T> row[kBatchRows];
};

// The rows of a thread's group, wherever they are.
template <class T>
struct HeldRows {
  static constexpr bool kInRegisters = sizeof(T) < sizeof(float);
  const HeadView& head;
  uint4* shared;   // of the thread
  int64_t column;  // of the head
  int begin, end;
  int shared_batches;
  Batch<T> held;

  __device__ __forceinline__ uint4* place(int row, int pack) const {
    return shared + (row * Columns<T>::kPacks + pack) * kFewRowsThreads;
  }

  __device__ __forceinline__ void load(Batch<T>& batch, int first) const {
#pragma unroll
    for (int r = 0; r < kBatchRows; ++r) {
      const bool exists = begin + first + r < end;
      const int64_t left = exists ? head.columns - column : 0;
      batch.row[r].load(row_of<T>(head, exists ? begin + first + r : 0) + column, left,
                        head.vectors);
    }
  }

  // Starts to bring the rows on chip.
  __device__ __forceinline__ void fetch() {
    for (int b = 0; b < shared_batches; ++b) {
#pragma unroll
      for (int r = 0; r < kBatchRows; ++r) {
        const int n = begin + b * kBatchRows + r;
        const T* row = row_of<T>(head, n < end ? n : 0);
#pragma unroll
        for (int p = 0; p < Columns<T>::kPacks; ++p) {
          const int64_t first = column + p * kPack<T>;
          const int64_t left = n < end ? head.columns - first : 0;
          uint4* to = place(b * kBatchRows + r, p);
          if (head.vectors) {
            const auto bytes =
                static_cast<int>(smaller(left, kPack<T>) * static_cast<int>(sizeof(T)));
            copy_async(to, bytes > 0 ? row + first : row, bytes > 0 ? bytes : 0);
          } else {
            *to = load_pack(row + first, left, false);
          }
        }
      }
      commit_copies();
    }
    if (kInRegisters && shared_batches < kBatches) load(held, shared_batches * kBatchRows);
  }

  // Calls body(first row, batch) for all batches.
  template <class Body>
  __device__ __forceinline__ void for_batches(const Body& body) const {
#pragma unroll 1
    for (int b = 0; b < kBatches && begin + b * kBatchRows < end; ++b) {
      Batch<T> batch;
      if (b < shared_batches) {
        wait_for_copies(shared_batches - 1 - b);
#pragma unroll
        for (int r = 0; r < kBatchRows; ++r) {
#pragma unroll
          for (int p = 0; p < Columns<T>::kPacks; ++p) {
            batch.row[r].pack[p] = *place(b * kBatchRows + r, p);
          }
        }
      } else if (kInRegisters && b == shared_batches) {
        batch = held;
      } else {
        load(batch, b * kBatchRows);
      }
      body(begin + b * kBatchRows, batch);
    }
  }
};

static_assert(kBatches - 1 <= 3, "wait_for_copies tells no more apart");

// a = -log sum_n exp(z/T), in the threads of the first group.
template <class T>
__device__ __forceinline__ void first_columns(float (&potential)[kColumnsPerThread],
                                              const HeldRows<T>& rows, float2* other, int group,
                                              const FewRowsParameters& p) {
  float largest[kColumnsPerThread], total[kColumnsPerThread] = {};
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) largest[c] = -kInfinity;
  rows.for_batches([&](int first, const Batch<T>& batch) {
#pragma unroll
    for (int r = 0; r < kBatchRows; ++r) {
      float z[kColumnsPerThread];
      batch.row[r].get(z);
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        if (first + r < rows.end) largest[c] = fmaxf(largest[c], z[c]);
      }
    }
  });
  rows.for_batches([&](int first, const Batch<T>& batch) {
#pragma unroll
    for (int r = 0; r < kBatchRows; ++r) {
      float z[kColumnsPerThread];
      batch.row[r].get(z);
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        const float x = exponent_of<T>(z[c] - LogSumExp::shift(largest[c]), p.scale, 0.0f);
        if (first + r < rows.end) total[c] += fast_exp(x);
      }
    }
  });
  const int thread = threadIdx.x % kThreads;
  if (group > 0) {
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      other[c * kThreads + thread] = make_float2(largest[c], total[c]);
    }
  }
  block_barrier();
  if (group > 0) return;
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) {
    const float2 part = other[c * kThreads + thread];
    const float maximum = fmaxf(largest[c], part.x);
    const auto rescaled = [&](float z, float sum) {  // a group without rows has -inf and 0
      return sum > 0.0f ? sum * fast_exp(exponent_of<T>(z - maximum, p.scale, 0.0f)) : 0.0f;
    };
    const float sum = rescaled(largest[c], total[c]) + rescaled(part.x, part.y);
    potential[c] = sum > 0.0f ? -(exponent_of<T>(maximum, p.scale, 0.0f) + logf(sum)) : 0.0f;
  }
}

// a -= log sum_n exp(z/T + a + b), in the threads of the first group.
template <class T>
__device__ __forceinline__ void next_columns(float (&potential)[kColumnsPerThread],
                                             const HeldRows<T>& rows, float2* other,
                                             const float* row, int group,
                                             const FewRowsParameters& p) {
  float mass[kColumnsPerThread] = {};
  rows.for_batches([&](int first, const Batch<T>& batch) {
#pragma unroll
    for (int r = 0; r < kBatchRows; ++r) {
      float z[kColumnsPerThread];
      batch.row[r].get(z);
      const float offset = first + r < rows.end ? row[first + r] : -kInfinity;
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        mass[c] += fast_exp(exponent_of<T>(z[c], p.scale, potential[c], offset));
      }
    }
  });
  const int thread = threadIdx.x % kThreads;
  if (group > 0) {
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) other[c * kThreads + thread].x = mass[c];
  }
  block_barrier();
  if (group > 0) return;
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) {
    const float sum = mass[c] + other[c * kThreads + thread].x;
    if (sum > 0.0f) potential[c] -= logf(sum);
  }
}

// Log-sum-exps of eight rows, each spread over the lanes of a warp: afterwards lane l has the whole
// one of row l % 8. Each of the first three steps hands half of the rows to a neighbour.
__device__ __forceinline__ LogSumExp merge_batch(LogSumExp (&sums)[kBatchRows]) {
#pragma unroll
  for (int step = 1; step < kBatchRows; step *= 2) {
    const bool upper = (lane_index() & step) != 0;
#pragma unroll
    for (int i = 0; i < kBatchRows / step; i += 2) {
      const LogSumExp given = upper ? sums[i] : sums[i + 1];
      sums[i / 2] = upper ? sums[i + 1] : sums[i];
      sums[i / 2].merge({shuffle_xor(given.maximum, step), shuffle_xor(given.total, step)});
    }
  }
#pragma unroll
  for (int step = kBatchRows; step < kWarpSize; step *= 2) {
    sums[0].merge({shuffle_xor(sums[0].maximum, step), shuffle_xor(sums[0].total, step)});
  }
  return sums[0];
}

// partial[n, slice] of all rows, from the potentials that all threads of a column share.
template <class T>
__device__ __forceinline__ void write_slice_sums(float2* partial,
                                                 const float (&potential)[kColumnsPerThread],
                                                 const HeldRows<T>& rows, FewRowsMemory& shared,
                                                 const FewRowsParameters& p) {
  rows.for_batches([&](int first, const Batch<T>& batch) {
    LogSumExp sums[kBatchRows];
#pragma unroll
    for (int r = 0; r < kBatchRows; ++r) {
      float x[kColumnsPerThread];
      batch.row[r].get(x);
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        x[c] = exponent_of<T>(x[c], p.scale, potential[c]);
      }
      sums[r].add(x);
    }
    const LogSumExp sum = merge_batch(sums);
    if (lane_index() < kBatchRows) {
      shared.row_sums[warp_index()][first - rows.begin + lane_index()] =
          make_float2(sum.maximum, sum.total);
    }
  });
  block_barrier();
  const int n = threadIdx.x, share = divide_up(p.n_valid, kRowGroups);
  if (n >= p.n_valid) return;
  LogSumExp sum;
  for (int w = 0; w < kWarps; ++w) {
    const float2 part = shared.row_sums[n / share * kWarps + w][n % share];
    sum.merge({part.x, part.y});
  }
  partial[n * p.heads.n_slices + blockIdx.x] = make_float2(sum.maximum, sum.total);
}

// Row potentials b = -log sum_k exp(z/T + a), from the sums of the head's slices.
__device__ __forceinline__ void merge_slice_sums(float* row, const FewRowsParameters& p, int h,
                                                 const float2* partial) {
  for (int n = warp_index(); n < p.n_valid; n += kFewRowsThreads / kWarpSize) {
    const LogSumExp sum = merge_slices(p.heads, h, n, partial);
    if (lane_index() == 0) row[n] = -(sum.maximum + logf(sum.total));
  }
  block_barrier();
}

template <class T, bool cooperative>
__global__ void __launch_bounds__(kFewRowsThreads, 1)
    few_rows_kernel(const __grid_constant__ FewRowsParameters p) {
  auto& shared = *reinterpret_cast<FewRowsMemory*>(shared_memory());
  auto* held = reinterpret_cast<uint4*>(&shared + 1);
  const Slice slice = find_slice(p.heads, blockIdx.x);
  const HeadView& head = p.heads.head[slice.head];
  const int thread = threadIdx.x % kThreads, group = threadIdx.x / kThreads;
  const int share = divide_up(p.n_valid, kRowGroups);
  const int64_t offset = thread * kColumnsPerThread, column = slice.begin + offset;
  HeldRows<T> rows{head,
                   held + threadIdx.x,
                   column,
                   group * share,
                   static_cast<int>(smaller((group + 1) * share, p.n_valid)),
                   p.shared_batches,
                   {}};
  rows.fetch();
  float* own = p.prototype + head.first_column + column;
  float potential[kColumnsPerThread] = {};
  if (p.first_iteration > 0) {
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      if (offset + c < slice.columns) potential[c] = own[c];
    }
  }
  for (int i = p.first_iteration; i < p.end_iteration; ++i) {
    if (i == 0) {
      first_columns(potential, rows, shared.sums, group, p);
    } else {
      merge_slice_sums(shared.row, p, slice.head, p.partial[(i - 1) % 2]);
      next_columns(potential, rows, shared.sums, shared.row, group, p);
    }
    if (group == 0) {
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        if (offset + c >= slice.columns) potential[c] = -kInfinity;
        shared.potential[c * kThreads + thread] = potential[c];
      }
    }
    block_barrier();
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      potential[c] = shared.potential[c * kThreads + thread];
    }
    write_slice_sums(p.partial[i % 2], potential, rows, shared, p);
    if (cooperative) grid_barrier();
  }
  if (group == 0) {
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      if (offset + c < slice.columns) own[c] = potential[c];
    }
  }
  if (!p.finish || slice.begin != 0) return;
  merge_slice_sums(shared.row, p, slice.head, p.partial[(p.end_iteration - 1) % 2]);
  float* to = p.row + slice.head * p.heads.n_rows;
  for (int64_t n = threadIdx.x; n < p.heads.n_rows; n += kFewRowsThreads) {
    to[n] = n < p.n_valid ? shared.row[n] : -kInfinity;
  }
}

}  // namespace franca::cuda
