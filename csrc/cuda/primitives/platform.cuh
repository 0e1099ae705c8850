// Kernel sources compile with nvcc and, with FRANCA_EMULATION, with a C++ compiler: then a block's
// threads are fibers (csrc/tests/emulation). Every primitive in this folder has both forms, and the
// kernels use CUDA through them only.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(FRANCA_EMULATION)
#include "tests/emulation/device.hpp"
#else
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#endif

namespace franca::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class A, class B>
__host__ __device__ __forceinline__ constexpr auto divide_up(A a, B b) {
  return (a + b - 1) / b;
}

__device__ __forceinline__ int lane_index() {
  return threadIdx.x % kWarpSize;
}
__device__ __forceinline__ int warp_index() {
  return threadIdx.x / kWarpSize;
}

}  // namespace franca::cuda
