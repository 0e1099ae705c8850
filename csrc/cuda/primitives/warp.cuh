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

inline void warp_barrier() {
  emulation::exchange("", 1);
}

#else

__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

__device__ __forceinline__ bool warp_any(bool condition) {
  return __any_sync(kAllLanes, condition) != 0;
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

}  // namespace franca::cuda
