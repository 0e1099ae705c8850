// Thread block clusters and their distributed shared memory (sm_90 and later). On devices without
// them a cluster is one block.
#pragma once

#include "cuda/primitives/block.cuh"
#include "cuda/primitives/memory.cuh"

namespace franca::cuda {

#if defined(FRANCA_EMULATION)

inline unsigned cluster_rank() {
  return emulation::current().block->rank;
}

// Writes before it are visible to the whole cluster after it.
inline void cluster_barrier() {
  emulation::cluster_barrier();
}

using ArrivalBarrier = emulation::ArrivalBarrier;

inline void init_arrivals(ArrivalBarrier* barrier) {
  emulation::check_aligned(barrier, sizeof(uint64_t));
  emulation::arrivals_init(barrier);
}

inline void end_arrivals(ArrivalBarrier* barrier) {
  emulation::arrivals_end(barrier);
}

inline void expect_arrivals(ArrivalBarrier* barrier, unsigned bytes) {
  emulation::arrivals_expect(barrier, bytes);
}

inline void wait_for_arrivals(ArrivalBarrier* barrier, unsigned phase) {
  emulation::arrivals_wait(barrier, phase);
}

inline void send_to_peer(float* own, ArrivalBarrier* barrier, unsigned rank, float value) {
  emulation::check_aligned(own, sizeof(float));
  emulation::send(own, barrier, rank, &value, sizeof(value));
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

// Counts bytes that other blocks of the cluster send to this one: a phase ends when the bytes that
// its owner expects have come. Phases are numbered from 0. A sender needs no fence and drains
// nothing, unlike a barrier of the cluster. On devices without clusters it is a barrier of the
// block.
struct ArrivalBarrier {
  uint64_t word;
};

// By one thread; the others, of all blocks, may use it after the next barrier of the cluster.
__device__ __forceinline__ void init_arrivals(ArrivalBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// By one thread, when nobody uses it any more and before its memory is used for anything else.
__device__ __forceinline__ void end_arrivals(ArrivalBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// By one thread, once in each phase, before or after bytes have come.
__device__ __forceinline__ void expect_arrivals(ArrivalBarrier* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#endif
}

// By every thread of the block.
__device__ __forceinline__ void wait_for_arrivals(ArrivalBarrier* barrier, unsigned phase) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra WAIT;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(phase % 2)
      : "memory");
#else
  __syncthreads();
#endif
}

// Stores to the place in the shared memory of block `rank` that corresponds to `own` in this one,
// and counts the bytes at that block's barrier.
__device__ __forceinline__ void send_to_peer(float* own, ArrivalBarrier* barrier, unsigned rank,
                                             float value) {
#if __CUDA_ARCH__ >= 900
  unsigned place, counter;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(place)
               : "r"(shared_address(own)), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(counter)
               : "r"(shared_address(barrier)), "r"(rank));
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(place),
      "r"(__float_as_uint(value)), "r"(counter)
      : "memory");
#else
  *own = value;
#endif
}

#endif

}  // namespace franca::cuda
