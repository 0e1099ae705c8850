// A tile of scores x v^T on tensor cores: 128 rows of features times 128 prototypes.
//
// Both factors pass through shared memory in steps of 64 elements, three steps deep. Rows of a step
// are 128 bytes; their 16-byte packs are permuted by the row, so that the eight rows of a matrix
// load lie in different banks.
#pragma once

#include "cuda/logits.cuh"
#include "cuda/primitives/block.cuh"
#include "cuda/primitives/matrix.cuh"

namespace franca::cuda {

constexpr int kTileRows = 128;
constexpr int kTileColumns = 128;
constexpr int kDepth = 64;
constexpr int kTileStages = 3;
constexpr int kPacksPerRow = kDepth * 2 / kPackBytes;
constexpr int kFactorPacks = 128 * kPacksPerRow;
constexpr std::size_t kTileBytes = 2 * kTileStages * kFactorPacks * kPackBytes;
constexpr int kTilesPerSlice = kSliceColumns / kTileColumns;

// The 8 warps stand in 2 rows and 4 columns; each has 64 x 32 scores as 4 x 4 accumulators.
constexpr int kWarpsAcross = 4;
constexpr int kAccumulatorsDown = 4;
constexpr int kAccumulatorsAcross = 4;

struct ScoreTile {
  float value[kAccumulatorsDown][kAccumulatorsAcross][4];
};

// Rows and columns within the tile that a lane holds: 8 of each.
constexpr int kLaneRows = 2 * kAccumulatorsDown;
constexpr int kLaneColumns = 2 * kAccumulatorsAcross;

__device__ __forceinline__ int warp_down() {
  return warp_index() / kWarpsAcross;
}
__device__ __forceinline__ int warp_across() {
  return warp_index() % kWarpsAcross;
}

__device__ __forceinline__ int tile_row(int r) {
  return warp_down() * 64 + (r / 2) * 16 + (r % 2) * 8 + lane_index() / 4;
}

__device__ __forceinline__ int tile_column(int c) {
  return warp_across() * 32 + (c / 2) * 8 + lane_index() % 4 * 2 + c % 2;
}

__device__ __forceinline__ float& score(ScoreTile& tile, int r, int c) {
  return tile.value[r / 2][c / 2][2 * (r % 2) + c % 2];
}

// Where pack `pack` of row `row` lies in a step.
__device__ __forceinline__ int place(int row, int pack) {
  return row * kPacksPerRow + (pack ^ (row % kPacksPerRow));
}

// Starts copying 128 rows of a matrix, elements [first, first + kDepth). `row_index` gives the row
// of the matrix for a row of the tile, negative for none; what does not exist becomes 0.
template <class T, class RowIndex>
__device__ __forceinline__ void fetch_factor(uint4* to, const Matrix& matrix, int64_t first,
                                             const RowIndex& row_index) {
  // Unrolled, the addresses of all packs would stay in registers that the accumulators need.
#pragma unroll 1
  for (int i = 0; i < kFactorPacks / kThreads; ++i) {
    const int index = i * kThreads + threadIdx.x;
    const int row = index / kPacksPerRow, pack = index % kPacksPerRow;
    const int64_t n = row_index(row);
    const int64_t element = first + pack * kPack<T>;
    const T* from = row_of<T>(matrix, n < 0 ? 0 : n) + element;
    const int64_t left = n < 0 ? 0 : matrix.columns - element;
    uint4* target = to + place(row, pack);
    if (matrix.vectors) {
      const int count = static_cast<int>(left < 0 ? 0 : smaller(left, kPack<T>));
      copy_async(target, count > 0 ? static_cast<const void*>(from) : matrix.data,
                 count * static_cast<int>(sizeof(T)));
    } else {
      *target = load_pack(from, left, false);
    }
  }
}

template <class T>
__device__ __forceinline__ void multiply_step(ScoreTile& tile, const uint4* x, const uint4* v) {
  const int lane = lane_index();
  // Unrolled further, addresses take the registers that the accumulators need.
#pragma unroll 2
  for (int k = 0; k < kDepth / 16; ++k) {
    Fragment b[kAccumulatorsAcross / 2];
#pragma unroll
    for (int j = 0; j < kAccumulatorsAcross / 2; ++j) {
      const int row = warp_across() * 32 + j * 16 + lane / 16 * 8 + lane % 8;
      b[j] = load_fragment(v + place(row, 2 * k + lane / 8 % 2));
    }
#pragma unroll
    for (int i = 0; i < kAccumulatorsDown; ++i) {
      const int row = warp_down() * 64 + i * 16 + lane % 16;
      const Fragment a = load_fragment(x + place(row, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < kAccumulatorsAcross; ++j) {
        const Fragment& pair = b[j / 2];
        multiply_add<T>(tile.value[i][j], a, pair.word[j % 2 * 2], pair.word[j % 2 * 2 + 1]);
      }
    }
  }
}

// Fills `tile` with <x[row_index(r)], v[first_column + c]>; rows and columns that do not exist are
// 0. Every thread of the block must take part; `shared` has kTileBytes.
template <class T, class RowIndex>
__device__ __forceinline__ void multiply_tile(ScoreTile& tile, uint4* shared, const Matrix& x,
                                              const RowIndex& row_index, const Matrix& v,
                                              int64_t n_columns, int64_t first_column) {
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) score(tile, r, c) = 0.0f;
  }
  const auto column_index = [&](int c) {
    return first_column + c < n_columns ? first_column + c : static_cast<int64_t>(-1);
  };
  const auto fetch = [&](int step) {
    uint4* to = shared + step % kTileStages * 2 * kFactorPacks;
    const int64_t first = static_cast<int64_t>(step) * kDepth;
    if (first < x.columns) {
      fetch_factor<T>(to, x, first, row_index);
      fetch_factor<T>(to + kFactorPacks, v, first, column_index);
    }
    commit_copies();
  };
  const auto n_steps = static_cast<int>((x.columns + kDepth - 1) / kDepth);
  // The tile before this one may still be read.
  block_barrier();
#pragma unroll
  for (int step = 0; step < kTileStages - 1; ++step) fetch(step);
  for (int step = 0; step < n_steps; ++step) {
    wait_for_copies<kTileStages - 2>();
    block_barrier();
    // Overwrites the step before this one, which all threads have left behind at the barrier.
    fetch(step + kTileStages - 1);
    const uint4* from = shared + step % kTileStages * 2 * kFactorPacks;
    multiply_step<T>(tile, from, from + kFactorPacks);
  }
  wait_for_copies<0>();
}

}  // namespace franca::cuda
