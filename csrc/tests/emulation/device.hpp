// CUDA's language for the host compiler: what kernel sources need besides csrc/cuda/primitives/.
// Names with two leading underscores are those of CUDA.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.hpp"
#include "warpgroup.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

#define threadIdx (::franca::emulation::current().thread)
#define blockIdx (::franca::emulation::current().block->index)
#define blockDim (::franca::emulation::current_shape().block)
#define gridDim (::franca::emulation::current_shape().grid)

struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return {x, y, z, w};
}

namespace franca::emulation {

inline void check_aligned(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) fail("misaligned vector access");
}

}  // namespace franca::emulation
