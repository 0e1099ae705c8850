// Thread block clusters and their distributed shared memory (sm_90 and later). On devices without
// them a cluster is one block.
#pragma once

#include "cuda/primitives/block.cuh"

namespace franca::cuda {

#if defined(FRANCA_EMULATION)

inline unsigned cluster_rank() {
  return emulation::current().block->rank;
}

inline unsigned cluster_size() {
  return emulation::current_shape().cluster;
}

// Writes before it are visible to the whole cluster after it.
inline void cluster_barrier() {
  emulation::cluster_barrier();
}

inline void store_to_peer(float2* own, unsigned rank, float2 value) {
  emulation::check_aligned(own, sizeof(float2));
  std::memcpy(emulation::peer_address(own, rank), &value, sizeof(value));
}

#else

__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

__device__ __forceinline__ unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  // The instructions are "aligned": a warp must reach them as one.
  __syncwarp(kAllLanes);
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
#else
  __syncthreads();
#endif
}

// Stores to the place in the shared memory of block `rank` that corresponds to `own` in this one.
__device__ __forceinline__ void store_to_peer(float2* own, unsigned rank, float2 value) {
#if __CUDA_ARCH__ >= 900
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(own));
  unsigned remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(remote), "f"(value.x), "f"(value.y)
               : "memory");
#else
  *own = value;
#endif
}

#endif

}  // namespace franca::cuda
