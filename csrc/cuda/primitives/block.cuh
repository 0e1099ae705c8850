// Barriers and the dynamic shared memory of a block.
#pragma once

#include "cuda/primitives/platform.cuh"

namespace franca::cuda {

#if defined(FRANCA_EMULATION)

inline void block_barrier() {
  emulation::block_barrier();
}

inline void grid_barrier() {
  emulation::grid_barrier();
}

inline unsigned char* shared_memory() {
  return emulation::current().block->shared_begin;
}

#else

__device__ __forceinline__ void block_barrier() {
  __syncthreads();
}

// All blocks of a cooperative launch; what they wrote before it is visible to all after it.
__device__ __forceinline__ void grid_barrier() {
  cooperative_groups::this_grid().sync();
}

// The first byte of the block's dynamic shared memory.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char franca_shared_memory[];
  return franca_shared_memory;
}

#endif

}  // namespace franca::cuda
