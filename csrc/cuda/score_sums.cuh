// What kernels on tiles of scores do with them: exponentials in base 2, their sums over the rows of
// a tile, and stores.
//
// With u = log2(e)/T, a power of the score z = scale <x, v> is 2^(<x, v> (scale u) + ...): one
// multiplication for both factors, which are rounded together to a float. That is off by 2^-24 for
// all scores of a column alike, less than the sum of the products is.
#pragma once

#include "cuda/score_tile.cuh"

namespace franca::cuda {

constexpr double kExactLn2 = 0.69314718055994531;

// log2(e)/T
inline InverseTemperature base2(double temperature) {
  inverse(temperature);  // which complains of it in the caller's terms
  return inverse(temperature * kExactLn2);
}

// Entry k of a vector that may be missing; 1 where it is.
__device__ __forceinline__ float scale_at(const float* scale, int64_t k) {
  return scale == nullptr ? 1.0f : scale[k];
}

__device__ __forceinline__ float times(float scale, InverseTemperature unit) {
  return fmaf(scale, unit.low, scale * unit.high);
}

// log2 of a sum of powers of 2 as maximum + log2(total), and what students and targets agree on.
struct RowSum {
  float maximum = -kInfinity;
  float total = 0.0f;
  float agreement = 0.0f;

  __device__ __forceinline__ void raise(float new_maximum) {
    total *= exp2_fast(maximum - LogSumExp::shift(new_maximum));
    maximum = new_maximum;
  }

  __device__ __forceinline__ void merge(const RowSum& other) {
    raise(fmaxf(maximum, other.maximum));
    total += other.total * exp2_fast(other.maximum - LogSumExp::shift(maximum));
    agreement += other.agreement;
  }
};

// Adds 2^tile to the sums of the rows.
template <class Tile>
__device__ __forceinline__ void add_powers(RowSum (&sums)[Tile::kRows], Tile& tile) {
#pragma unroll
  for (int r = 0; r < Tile::kRows; ++r) {
    float largest = sums[r].maximum;
#pragma unroll
    for (int c = 0; c < Tile::kColumns; ++c) largest = fmaxf(largest, tile.at(r, c));
    sums[r].raise(largest);
    const float offset = LogSumExp::shift(largest);
    float total = 0.0f;
#pragma unroll
    for (int c = 0; c < Tile::kColumns; ++c) total += exp2_fast(tile.at(r, c) - offset);
    sums[r].total += total;
  }
}

// What merging the sums of the rows needs.
template <class Tile>
constexpr std::size_t kMergeBytes =
    Tile::kWarpsAcross == 1 ? 0 : kTileRows * Tile::kWarpsAcross * sizeof(float4);

// The sums of the rows over all lanes and warps that hold their columns; calls take(row, sum) once
// for each row of the tile. `shared` has kMergeBytes and is nobody's.
template <class Tile, class Take>
__device__ __forceinline__ void merge_row_sums(RowSum (&sums)[Tile::kRows], float4* shared,
                                               const Take& take) {
#pragma unroll
  for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
      sums[r].merge({shuffle_xor(sums[r].maximum, mask), shuffle_xor(sums[r].total, mask),
                     shuffle_xor(sums[r].agreement, mask)});
    }
    if (lane_index() % 4 != 0) continue;
    if (Tile::kWarpsAcross == 1) {
      take(Tile::row(r), sums[r]);
    } else {
      shared[Tile::row(r) * Tile::kWarpsAcross + Tile::warp_across()] =
          make_float4(sums[r].maximum, sums[r].total, sums[r].agreement, 0.0f);
    }
  }
  if (Tile::kWarpsAcross == 1) return;
  block_barrier();
  if (threadIdx.x >= kTileRows) return;
  RowSum result;
#pragma unroll
  for (int w = 0; w < Tile::kWarpsAcross; ++w) {
    const float4 part = shared[threadIdx.x * Tile::kWarpsAcross + w];
    result.merge({part.x, part.y, part.z});
  }
  take(static_cast<int>(threadIdx.x), result);
}

// Two neighbouring columns of a table with two numbers for each.
struct ColumnPair {
  float4 entries;

  __device__ __forceinline__ ColumnPair(const float2* table, int column)
      : entries(reinterpret_cast<const float4*>(table)[column / 2]) {}
  __device__ __forceinline__ float first(int c) const { return c % 2 == 0 ? entries.x : entries.z; }
  __device__ __forceinline__ float second(int c) const {
    return c % 2 == 0 ? entries.y : entries.w;
  }
};

// Where a lane stores its part of a tile: eight neighbouring columns of each of its rows at a time,
// of every 32 columns.
template <class T, class Tile>
class StoredTile {
 public:
  // `to` is the tile's first element; so many rows and columns from there on exist.
  __device__ __forceinline__ StoredTile(T* to, int64_t stride, bool vectors, int64_t rows,
                                        int64_t columns)
      : vectors_(vectors) {
    const int row = Tile::row(0), column = Tile::column(0) + lane_index() % 4 * 6;
    to_ = to + row * stride + column;
    between_rows_ = (Tile::row(1) - row) * stride;
    rows_ = static_cast<int>(smaller(rows, kTileRows)) - row;
    columns_ = static_cast<int>(smaller(columns, kTileColumns)) - column;
  }

  // Stores the lane's columns c to c + 7, of which word[r][i] holds the pair 2 i. All lanes must
  // take part.
  __device__ __forceinline__ void store(uint32_t (&word)[Tile::kRows][4], int c) const {
    T* to = to_ + 4 * c;
    const int columns = columns_ - 4 * c;
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      transpose_quad(word[r]);  // pairs of four lanes; now each has eight neighbours
      if (r * 8 < rows_) store_row(to, word[r], columns);
      to += between_rows_;
    }
  }

 private:
  __device__ __forceinline__ void store_row(T* to, const uint32_t (&word)[4], int columns) const {
    if (vectors_ && columns >= 8) {
      store_vector(to, make_uint4(word[0], word[1], word[2], word[3]));
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < columns) to[i].bits = static_cast<uint16_t>(word[i / 2] >> (16 * (i % 2)));
    }
  }

  T* to_;
  int64_t between_rows_;  // of a lane, of which each is eight below the last
  int rows_, columns_;
  bool vectors_;
};

}  // namespace franca::cuda
