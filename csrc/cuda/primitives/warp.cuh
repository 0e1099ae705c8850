// Warp shuffles and reductions. All lanes of the warp must take part.
#pragma once

#include "cuda/primitives/platform.cuh"

namespace franca::cuda {

#if defined(FRANCA_EMULATION)

template <class T>
inline T shuffle_xor(T value, int mask) {
  const auto* slots = emulation::exchange(&value, sizeof(value));
  std::memcpy(&value, slots[lane_index() ^ mask], sizeof(value));
  return value;
}

// Whether the condition holds in any lane.
inline bool warp_any(bool condition) {
  const auto* slots = emulation::exchange(&condition, sizeof(condition));
  for (int lane = 0; lane < kWarpSize; ++lane) {
    bool other;
    std::memcpy(&other, slots[lane], sizeof(other));
    condition = condition || other;
  }
  return condition;
}

inline uint32_t warp_uniform(uint32_t value) {
  return value;
}

inline void warp_barrier() {
  emulation::exchange("", 1);
}

#else

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

__device__ __forceinline__ bool warp_any(bool condition) {
  return __any_sync(kAllLanes, condition) != 0;
}

// A value that is the same in all lanes, which tells the compiler so.
__device__ __forceinline__ uint32_t warp_uniform(uint32_t value) {
  return __shfl_sync(kAllLanes, value, 0);
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
