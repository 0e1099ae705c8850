// Sums of exponentials over rows, taken tile by tile without overflow.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/tile_kernels.hpp"
#include "cpu/tiles.hpp"

namespace franca::cpu {

// A sum of exponentials exp(x - shift).
struct ShiftedSum {
  float shift;
  float sum;
};

// Without a shift, sums of exponentials neither overflow nor lose anything of the result while they
// stay between these bounds, which ordinary logits do. Only others pay for a maximum.
inline bool needs_shift(float sum) {
  return !(sum >= 0x1p-80f && sum <= 0x1p100f);
}

// A shift that leaves the largest exponent at 0. Infinite logits are no reason for NaN here: they
// make the sum itself infinite or 0.
inline float safe_shift(float maximum) {
  return std::isfinite(maximum) ? maximum : 0.0f;
}

// The sum over a whole row: exp(shift) * sum. Adding the tiles' sums in double costs nothing and
// makes rows of many tiles as exact as short ones.
struct RowSum {
  double shift = -std::numeric_limits<double>::infinity();
  double sum = 0.0;

  void add(ShiftedSum tile) {
    if (tile.shift == shift) {
      sum += tile.sum;
    } else if (tile.shift < shift) {
      sum += tile.sum * std::exp(tile.shift - shift);
    } else {
      sum = sum * std::exp(shift - tile.shift) + tile.sum;
      shift = tile.shift;
    }
  }

  double logsumexp() const { return shift + std::log(sum); }
};

// Sum of exp(z/T + a) over one tile of a row.
inline ShiftedSum sum_of_tile(const RaggedLogits& logits, const Tile& tile, int64_t n, Scale scale,
                              const float* prototype, const TileKernels& kernels) {
  const int dtype = static_cast<int>(logits.dtype);
  const void* x = tile_row(logits, tile, n);
  const float* potential = prototype + tile.offset;
  float shift = 0.0f;
  float sum = kernels.exp_sum[dtype](x, tile.columns, scale, potential, shift);
  if (needs_shift(sum)) {
    shift = safe_shift(kernels.maximum[dtype](x, tile.columns, scale, potential));
    sum = kernels.exp_sum[dtype](x, tile.columns, scale, potential, shift);
  }
  return {shift, sum};
}

// factor * exp(x - shift) = exp(x - lse). The shift is the one of the sum, so that exponents are
// not rounded once more and the terms of a row add up to 1.
struct Normalizer {
  Normalizer() = default;
  explicit Normalizer(const RowSum& row)
      : shift(static_cast<float>(row.shift)), factor(static_cast<float>(1.0 / row.sum)) {}
  float shift = 0.0f;
  float factor = 0.0f;
};

}  // namespace franca::cpu
