// Passes over scores z[n,k] = scale[k] <x[n], v[k]>, which are multiplied on tensor cores: stored,
// or consumed in registers and never stored.
#pragma once

#include "cuda/score_sums.cuh"

namespace franca::cuda {

// The factors of the scores of all heads.
struct ScoreFactors {
  Matrix features[kMaxHeads];    // [N, C]
  Matrix prototypes[kMaxHeads];  // [K, C]
  const float* scale[kMaxHeads];
};

// One product for each tile, of rows from `first_held` on with those from `first_passing` on.
struct OneProduct {
  const Matrix& held_rows;
  int64_t first_held, end_held;
  const Matrix& passing_rows;
  int64_t first_passing, end_passing;

  __device__ __forceinline__ int count() const { return 1; }
  __device__ __forceinline__ const Matrix& held(int) const { return held_rows; }
  __device__ __forceinline__ const Matrix& passing(int) const { return passing_rows; }
  __device__ __forceinline__ int64_t held_row(int, int r) const {
    return first_held + r < end_held ? first_held + r : -1;
  }
  __device__ __forceinline__ int64_t first(int tile) const {
    return first_passing + static_cast<int64_t>(tile) * kTileColumns;
  }
  __device__ __forceinline__ int64_t end() const { return end_passing; }
  __device__ __forceinline__ int tiles() const {
    return static_cast<int>(divide_up(end_passing - first_passing, kTileColumns));
  }
};

// partial[n, slice] = maximum and total of the log-sum-exp of z/T + prototype over the slice
// blockIdx.y, for the first n_valid rows, of the row tile blockIdx.x. Row tiles come first in the
// order of blocks, so that blocks which run at a time share their prototypes, of which there are
// many, in the cache.
template <class T, class Form>
__global__ void __launch_bounds__(kThreads, 2)
    streamed_rows_kernel(const __grid_constant__ ScoreFactors factors,
                         const __grid_constant__ Heads scores,
                         const __grid_constant__ TilePlan plan, InverseTemperature unit,
                         int64_t n_valid, const float* prototype, float2* partial) {
  if constexpr (Form::kCompiled) {
    using Tile = typename Form::Tile;
    const Slice slice = find_slice(scores, blockIdx.y);
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
    const int64_t end = slice.begin + smaller(slice.columns, kSliceColumns);
    const OneProduct product{factors.features[slice.head],   first_row,   n_valid,
                             factors.prototypes[slice.head], slice.begin, end};
    TilePipeline<T, Form, OneProduct> pipeline(plan, product, product.tiles());
    auto* table = static_cast<float2*>(pipeline.own_memory());
    RowSum sums[Tile::kRows];
    for (int t = 0; t < product.tiles(); ++t) {
      const int64_t k = product.first(t) + threadIdx.x;
      const bool mine = threadIdx.x < kTileColumns, exists = mine && k < end;
      const float scale = exists ? scale_at(factors.scale[slice.head], k) : 0.0f;
      const float potential =
          exists ? prototype[scores.head[slice.head].first_column + k] * kLog2E : -kInfinity;
      Tile tile;
      pipeline.multiply(tile, 0);
      if (mine) table[threadIdx.x] = make_float2(times(scale, unit), potential);
      block_barrier();
      pipeline.finish(tile);
#pragma unroll
      for (int c = 0; c < Tile::kColumns; c += 2) {
        const ColumnPair pair(table, Tile::column(c));
#pragma unroll
        for (int r = 0; r < Tile::kRows; ++r) {
          tile.at(r, c) = fmaf(tile.at(r, c), pair.first(0), pair.second(0));
          tile.at(r, c + 1) = fmaf(tile.at(r, c + 1), pair.first(1), pair.second(1));
        }
      }
      add_powers(sums, tile);
    }
    merge_row_sums<Tile>(
        sums, static_cast<float4*>(pipeline.free_memory()), [&](int r, const RowSum& sum) {
          const int64_t n = first_row + r;
          if (n >= n_valid) return;
          partial[n * scores.n_slices + blockIdx.y] = make_float2(sum.maximum * kLn2, sum.total);
        });
  }
}

struct TileColumns {
  int head;
  int64_t first;  // column of the head
};

// Column tile of a block; kTilesPerSlice tiles make a slice.
__device__ __forceinline__ TileColumns find_tile(const Heads& scores, int64_t tile) {
  const Slice slice = find_slice(scores, tile / kTilesPerSlice);
  return {slice.head, slice.begin + tile % kTilesPerSlice * kTileColumns};
}

// Adds 2^(<v, x> scale + potential + offset) of a tile, whose columns are rows of features with
// offsets of their own: to the totals alone with `mass`, which needs no maximum.
template <bool mass, class Tile>
__device__ __forceinline__ void add_columns(RowSum (&sums)[Tile::kRows], Tile& tile,
                                            const float (&scale)[Tile::kRows],
                                            const float (&potential)[Tile::kRows],
                                            const float* offsets) {
#pragma unroll
  for (int c = 0; c < Tile::kColumns; c += 2) {
    const float2 offset = reinterpret_cast<const float2*>(offsets)[Tile::column(c) / 2];
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = tile.at(r, c + i);
        x = fmaf(x, scale[r], potential[r]) + (i == 0 ? offset.x : offset.y);
        if (mass) sums[r].total += exp2_fast(x);
      }
    }
  }
  if (!mass) add_powers(sums, tile);
}

// Without `mass`, maximum and total [chunk, column] of the log-sum-exp over rows of z/T; with it,
// total = sum_n exp(z/T + prototype + row). The prototypes of column tile blockIdx.x are held and
// the features pass by; chunks of their rows are blockIdx.y.
template <class T, class Form, bool mass>
__global__ void __launch_bounds__(kThreads, 2)
    streamed_columns_kernel(const __grid_constant__ ScoreFactors factors,
                            const __grid_constant__ Heads scores,
                            const __grid_constant__ TilePlan plan, InverseTemperature unit,
                            int64_t n_valid, int64_t rows, const float* prototype, const float* row,
                            float* maximum, float* total) {
  if constexpr (Form::kCompiled) {
    using Tile = typename Form::Tile;
    const TileColumns columns = find_tile(scores, blockIdx.x);
    const HeadView& head = scores.head[columns.head];
    if (columns.first >= head.columns) return;
    float scale[Tile::kRows], potential[Tile::kRows];
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      const int64_t k = columns.first + Tile::row(r);
      const bool exists = k < head.columns;
      scale[r] = exists ? times(scale_at(factors.scale[columns.head], k), unit) : 0.0f;
      potential[r] = mass && exists ? prototype[head.first_column + k] * kLog2E : 0.0f;
    }
    const OneProduct product{factors.prototypes[columns.head],
                             columns.first,
                             head.columns,
                             factors.features[columns.head],
                             static_cast<int64_t>(blockIdx.y) * rows,
                             smaller((blockIdx.y + 1) * rows, n_valid)};
    TilePipeline<T, Form, OneProduct> pipeline(plan, product, product.tiles());
    auto* offsets = static_cast<float*>(pipeline.own_memory());
    RowSum sums[Tile::kRows];
    for (int t = 0; t < product.tiles(); ++t) {
      const int64_t n = product.first(t) + threadIdx.x;
      const bool mine = threadIdx.x < kTileColumns;
      float offset = -kInfinity;
      if (mine && n < product.end()) {
        offset = mass ? row[columns.head * scores.n_rows + n] * kLog2E : 0.0f;
      }
      Tile tile;
      pipeline.multiply(tile, 0);
      if (mine) offsets[threadIdx.x] = offset;
      block_barrier();
      pipeline.finish(tile);
      add_columns<mass>(sums, tile, scale, potential, offsets);
    }
    if (mass) {
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) sums[r].maximum = 0.0f;
    }
    merge_row_sums<Tile>(sums, static_cast<float4*>(pipeline.free_memory()),
                         [&](int r, const RowSum& sum) {
                           const int64_t k = columns.first + r;
                           if (k >= head.columns) return;
                           const int64_t to = blockIdx.y * scores.n_columns + head.first_column + k;
                           if (!mass) maximum[to] = sum.maximum * kLn2;
                           total[to] = sum.total;
                         });
  }
}

// Stores the scores of row tile blockIdx.x in the type of the features, `tiles` column tiles of a
// slice from tile `tiles` blockIdx.y on.
template <class T, class Form>
__global__ void __launch_bounds__(kThreads, 2)
    scores_kernel(const __grid_constant__ ScoreFactors factors,
                  const __grid_constant__ Heads scores, const __grid_constant__ TilePlan plan,
                  int tiles) {
  if constexpr (Form::kCompiled) {
    using Tile = typename Form::Tile;
    const TileColumns columns = find_tile(scores, static_cast<int64_t>(blockIdx.y) * tiles);
    const HeadView& head = scores.head[columns.head];
    if (columns.first >= head.columns) return;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
    const OneProduct product{
        factors.features[columns.head],
        first_row,
        scores.n_rows,
        factors.prototypes[columns.head],
        columns.first,
        smaller(columns.first + static_cast<int64_t>(tiles) * kTileColumns, head.columns)};
    TilePipeline<T, Form, OneProduct> pipeline(plan, product, product.tiles());
    auto* scales = static_cast<float*>(pipeline.own_memory());
    for (int t = 0; t < product.tiles(); ++t) {
      const int64_t k = product.first(t) + threadIdx.x;
      const bool mine = threadIdx.x < kTileColumns;
      const float scale =
          mine && k < head.columns ? scale_at(factors.scale[columns.head], k) : 0.0f;
      Tile tile;
      pipeline.multiply(tile, 0);
      if (mine) scales[threadIdx.x] = scale;
      block_barrier();
      pipeline.finish(tile);
      const StoredTile<T, Tile> stored(row_of<T>(head, first_row) + product.first(t),
                                       head.row_bytes / static_cast<int64_t>(sizeof(T)),
                                       head.vectors, scores.n_rows - first_row,
                                       head.columns - product.first(t));
#pragma unroll
      for (int c = 0; c < Tile::kColumns; c += 8) {
        uint32_t words[Tile::kRows][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = c + 2 * i;
          const float2 pair = reinterpret_cast<const float2*>(scales)[Tile::column(column) / 2];
#pragma unroll
          for (int r = 0; r < Tile::kRows; ++r) {
            words[r][i] =
                make_pair<T>(tile.at(r, column) * pair.x, tile.at(r, column + 1) * pair.y);
          }
        }
        stored.store(words, c);
      }
    }
  }
}

}  // namespace franca::cuda
