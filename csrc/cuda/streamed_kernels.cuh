// Passes over scores that are never stored: tiles of z[n,k] = scale[k] <x[n], v[k]> are computed on
// tensor cores and consumed in registers.
#pragma once

#include "cuda/score_tile.cuh"

namespace franca::cuda {

// The factors of the scores of all heads; `slices` numbers the tiles of columns.
struct ScoreFactors {
  Matrix features[kMaxHeads];    // [N, C]
  Matrix prototypes[kMaxHeads];  // [K, C]
  const float* scale[kMaxHeads];
};

struct TileColumns {
  int head;
  int64_t first;  // column of the head
};

// Column tile of a block; kTilesPerSlice tiles make a slice.
__device__ __forceinline__ TileColumns find_tile(const Heads& scores, int64_t tile) {
  const Slice slice = find_slice(scores, tile / kTilesPerSlice);
  return {slice.head, slice.begin + tile % kTilesPerSlice * kTileColumns};
}

template <class T, class RowIndex>
__device__ __forceinline__ void score_tile(ScoreTile& tile, uint4* shared, const ScoreFactors& f,
                                           const Heads& scores, TileColumns columns,
                                           const RowIndex& row_index) {
  const int h = columns.head;
  multiply_tile<T>(tile, shared, f.features[h], row_index, f.prototypes[h], scores.head[h].columns,
                   columns.first);
}

// A value of each column that a lane holds, `missing` beyond the head's last column.
__device__ __forceinline__ void load_columns(float (&to)[kLaneColumns], const float* from,
                                             const Heads& scores, TileColumns columns,
                                             float missing) {
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    const int64_t k = columns.first + tile_column(c);
    to[c] = k < scores.head[columns.head].columns ? from[k] : missing;
  }
}

// Merges the rows that different lanes and warps hold of each column; the result is in the warps
// of the first row, in all lanes of the column. `shared` holds one entry for each column.
__device__ __forceinline__ void merge_down(LogSumExp (&sums)[kLaneColumns], float2* shared) {
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
#pragma unroll
    for (int mask = 4; mask < kWarpSize; mask *= 2) {
      const LogSumExp other{shuffle_xor(sums[c].maximum, mask), shuffle_xor(sums[c].total, mask)};
      sums[c].merge(other);
    }
  }
  block_barrier();
  if (warp_down() == 1 && lane_index() < 4) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      shared[tile_column(c)] = make_float2(sums[c].maximum, sums[c].total);
    }
  }
  block_barrier();
  if (warp_down() != 0) return;
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    const float2 other = shared[tile_column(c)];
    sums[c].merge({other.x, other.y});
  }
}

struct RowSum {
  LogSumExp sum;
  float agreement;
};

// Merges the columns that different lanes and warps hold of each row. Thread r < kTileRows returns
// that of row r.
__device__ __forceinline__ RowSum merge_across(RowSum (&rows)[kLaneRows], float4* shared) {
  block_barrier();
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
      const LogSumExp other{shuffle_xor(rows[r].sum.maximum, mask),
                            shuffle_xor(rows[r].sum.total, mask)};
      rows[r].sum.merge(other);
      rows[r].agreement += shuffle_xor(rows[r].agreement, mask);
    }
    if (lane_index() % 4 == 0) {
      float4 part;
      part.x = rows[r].sum.maximum;
      part.y = rows[r].sum.total;
      part.z = rows[r].agreement;
      part.w = 0.0f;
      shared[tile_row(r) * kWarpsAcross + warp_across()] = part;
    }
  }
  block_barrier();
  RowSum result{{}, 0.0f};
  if (threadIdx.x >= kTileRows) return result;
#pragma unroll
  for (int w = 0; w < kWarpsAcross; ++w) {
    const float4 part = shared[threadIdx.x * kWarpsAcross + w];
    result.sum.merge({part.x, part.y});
    result.agreement += part.z;
  }
  return result;
}

// Adds exp(z/T + potential + row) of the first `left` rows of a tile to the totals.
__device__ __forceinline__ void add_tile_mass(LogSumExp (&sums)[kLaneColumns], ScoreTile& tile,
                                              const float (&scale)[kLaneColumns],
                                              const float (&potential)[kLaneColumns],
                                              InverseTemperature temperature, const float* row,
                                              int64_t left) {
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const float offset = tile_row(r) < left ? row[tile_row(r)] : -kInfinity;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const float z = score(tile, r, c) * scale[c];
      const float main = fmaf(z, temperature.high, potential[c]) + offset;
      sums[c].total += fast_exp(fmaf(z, temperature.low, main));
    }
  }
}

// Adds the first `left` rows of a tile to the log-sum-exp of z/T.
__device__ __forceinline__ void add_tile_columns(LogSumExp (&sums)[kLaneColumns], ScoreTile& tile,
                                                 const float (&scale)[kLaneColumns],
                                                 InverseTemperature temperature, int64_t left) {
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    float x[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const float z = score(tile, r, c) * scale[c];
      x[r] = tile_row(r) < left ? exponent(z, temperature, 0.0f) : -kInfinity;
    }
    sums[c].add(x);
  }
}

// Without `mass`, maximum and total [chunk, column] of the log-sum-exp over rows of z/T; with it,
// total = sum_n exp(z/T + prototype + row). Chunks of rows are blockIdx.y.
template <class T, bool mass>
__global__ void __launch_bounds__(kThreads, 2)
    streamed_columns_kernel(const __grid_constant__ ScoreFactors factors,
                            const __grid_constant__ Heads scores, InverseTemperature temperature,
                            int64_t n_valid, int64_t rows, const float* prototype, const float* row,
                            float* maximum, float* total) {
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  const TileColumns columns = find_tile(scores, blockIdx.x);
  const HeadView& head = scores.head[columns.head];
  if (columns.first >= head.columns) return;
  float scale[kLaneColumns], potential[kLaneColumns] = {};
  load_columns(scale, factors.scale[columns.head], scores, columns, 0.0f);
  if (mass) load_columns(potential, prototype + head.first_column, scores, columns, 0.0f);
  LogSumExp sums[kLaneColumns];
  if (mass) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) sums[c].maximum = 0.0f;
  }
  const int64_t end = smaller((blockIdx.y + 1) * rows, n_valid);
  for (int64_t first = blockIdx.y * rows; first < end; first += kTileRows) {
    ScoreTile tile;
    score_tile<T>(tile, shared, factors, scores, columns,
                  [&](int r) { return first + r < end ? first + r : static_cast<int64_t>(-1); });
    if (mass) {
      add_tile_mass(sums, tile, scale, potential, temperature,
                    row + columns.head * scores.n_rows + first, smaller(end - first, kTileRows));
    } else {
      add_tile_columns(sums, tile, scale, temperature, smaller(end - first, kTileRows));
    }
  }
  merge_down(sums, reinterpret_cast<float2*>(shared));
  if (warp_down() != 0 || lane_index() >= 4) return;
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    const int64_t k = columns.first + tile_column(c);
    if (k >= head.columns) continue;
    const int64_t to = blockIdx.y * scores.n_columns + head.first_column + k;
    if (!mass) maximum[to] = sums[c].maximum;
    total[to] = sums[c].total;
  }
}

// Scales a tile; null: by 1. What a lane holds beyond the last column becomes 0.
__device__ __forceinline__ void scale_tile(ScoreTile& tile, const float* scale, const Heads& scores,
                                           TileColumns columns) {
  if (scale == nullptr) return;
  float factor[kLaneColumns];
  load_columns(factor, scale, scores, columns, 0.0f);
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) score(tile, r, c) *= factor[c];
  }
}

// Adds z/T + prototype (0 where that is null) of a tile to the log-sum-exps of its rows.
__device__ __forceinline__ void add_tile_rows(RowSum (&sums)[kLaneRows], ScoreTile& tile,
                                              const float* prototype, const Heads& scores,
                                              TileColumns columns, InverseTemperature temperature) {
  float potential[kLaneColumns];
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    const int64_t k = columns.first + tile_column(c);
    const bool exists = k < scores.head[columns.head].columns;
    potential[c] = !exists ? -kInfinity : prototype == nullptr ? 0.0f : prototype[k];
  }
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    float x[kLaneColumns];
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      x[c] = exponent(score(tile, r, c), temperature, potential[c]);
    }
    sums[r].sum.add(x);
  }
}

// Writes a tile to the matrices of `scores`, through shared memory, so that the stores are 16 bytes
// wide. The rows there are one pack longer than they need to be, which keeps them in different
// banks.
template <class T>
__device__ __forceinline__ void store_tile(ScoreTile& tile, uint4* shared, const Heads& scores,
                                           TileColumns columns, int64_t first_row) {
  constexpr int kPacksOfRow = kTileColumns / kPack<T>, kStride = kPacksOfRow + 1;
  const HeadView& head = scores.head[columns.head];
  auto* words = reinterpret_cast<uint32_t*>(shared);
  block_barrier();
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; c += 2) {
      words[tile_row(r) * kStride * 4 + tile_column(c) / 2] =
          make_pair<T>(score(tile, r, c), score(tile, r, c + 1));
    }
  }
  block_barrier();
#pragma unroll 1
  for (int i = threadIdx.x; i < kTileRows * kPacksOfRow; i += kThreads) {
    const int r = i / kPacksOfRow, pack = i % kPacksOfRow;
    const int64_t k = columns.first + pack * kPack<T>, left = head.columns - k;
    if (first_row + r >= scores.n_rows || left <= 0) continue;
    T* to = row_of<T>(head, first_row + r) + k;
    const uint4 value = shared[r * kStride + pack];
    if (head.vectors && left >= kPack<T>) {
      store_vector(to, value);
    } else {
      float values[kPack<T>];
      unpack(values, value, to);
      store_pack(to, values, left, false);
    }
  }
}

// Rounds a tile to the type it is stored in.
template <class T>
__device__ __forceinline__ void round_tile(ScoreTile& tile) {
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      T rounded;
      assign(rounded, score(tile, r, c));
      score(tile, r, c) = to_float(rounded);
    }
  }
}

// Scores of the first n_valid rows, of the row tile blockIdx.x, in one of three forms: stored, in
// the type of the features; as partial[n, slice], maximum and total of the log-sum-exp of z/T +
// prototype over a slice; or both, when the log-sum-exp is that of what is stored. blockIdx.y
// counts slices or, where the scores are only stored, tiles. Row tiles come first in the order of
// blocks, so that blocks which run at a time share their prototypes, of which there are many, in
// the cache.
template <class T, bool store, bool with_rows>
__global__ void __launch_bounds__(kThreads, 2)
    scores_kernel(const __grid_constant__ ScoreFactors factors,
                  const __grid_constant__ Heads scores, InverseTemperature temperature,
                  int64_t n_valid, const float* prototype, float2* partial) {
  auto* shared = reinterpret_cast<uint4*>(shared_memory());
  const Slice slice = find_slice(scores, with_rows ? blockIdx.y : blockIdx.y / kTilesPerSlice);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const float* potentials =
      prototype == nullptr ? nullptr : prototype + scores.head[slice.head].first_column;
  RowSum sums[kLaneRows] = {};
  const int first_tile = with_rows ? 0 : static_cast<int>(blockIdx.y % kTilesPerSlice);
  const int end_tile = with_rows ? kTilesPerSlice : first_tile + 1;
  for (int t = first_tile; t < end_tile && t * kTileColumns < slice.columns; ++t) {
    const TileColumns columns{slice.head, slice.begin + t * kTileColumns};
    ScoreTile tile;
    score_tile<T>(tile, shared, factors, scores, columns, [&](int r) {
      return first_row + r < n_valid ? first_row + r : static_cast<int64_t>(-1);
    });
    scale_tile(tile, factors.scale[slice.head], scores, columns);
    if (store && with_rows) round_tile<T>(tile);
    if (store) store_tile<T>(tile, shared, scores, columns, first_row);
    if (with_rows) add_tile_rows(sums, tile, potentials, scores, columns, temperature);
  }
  if (!with_rows) return;
  const RowSum sum = merge_across(sums, reinterpret_cast<float4*>(shared));
  const int64_t n = first_row + threadIdx.x;
  if (threadIdx.x < kTileRows && n < n_valid) {
    partial[n * scores.n_slices + blockIdx.y] = make_float2(sum.sum.maximum, sum.sum.total);
  }
}

}  // namespace franca::cuda
