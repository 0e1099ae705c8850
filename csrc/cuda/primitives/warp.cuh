// Warp shuffles and reductions. All lanes of the warp must take part.
#pragma once

#include "cuda/primitives/platform.cuh"

namespace franca::cuda {

#if defined(FRANCA_EMULATION)

inline float shuffle_xor(float value, int mask) {
  const auto* slots = emulation::exchange(&value, sizeof(value));
  std::memcpy(&value, slots[lane_index() ^ mask], sizeof(value));
  return value;
}

inline uint32_t shuffle_xor(uint32_t value, int mask) {
  const auto* slots = emulation::exchange(&value, sizeof(value));
  std::memcpy(&value, slots[lane_index() ^ mask], sizeof(value));
  return value;
}

inline void warp_barrier() {
  emulation::exchange("", 1);
}

#else

__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

__device__ __forceinline__ uint32_t shuffle_xor(uint32_t value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

__device__ __forceinline__ void warp_barrier() {
  __syncwarp(kAllLanes);
}

#endif

// Reductions over `width` neighbouring lanes, a power of two; every lane gets the result.
template <int width = kWarpSize>
__device__ __forceinline__ float warp_maximum(float value) {
#pragma unroll
  for (int mask = width / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

template <int width = kWarpSize>
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Four neighbouring lanes hold a 4x4 matrix, each a row; afterwards each holds a column.
__device__ __forceinline__ void transpose_quad(uint32_t (&word)[4]) {
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const bool upper = (lane_index() & step) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & step) != 0) continue;
      const uint32_t other = shuffle_xor(upper ? word[i] : word[i + step], step);
      word[i] = upper ? other : word[i];
      word[i + step] = upper ? word[i + step] : other;
    }
  }
}

}  // namespace franca::cuda
