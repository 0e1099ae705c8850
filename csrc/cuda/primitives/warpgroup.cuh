// Tensor core products of a warpgroup, four warps whose first has an index divisible by 4:
// m64n128k16 with 16-bit factors in shared memory and float accumulators (wgmma, sm_90a).
//
// Factors lie there in rows of 128 bytes, 64 elements of the depth, whose 16-byte packs are
// permuted by the row: pack p of row r is at p ^ (r % 8). A factor begins at a multiple of 1024
// bytes. Warp w of the group has the rows 16 w to 16 w + 15 of the product; its lanes hold each
// 16x8 part of them as those of mma.sync do (matrix.cuh).
//
// Products run behind the threads' backs. Fence, multiply (several times), commit; what is
// multiplied and the accumulators may not be touched before the wait.
#pragma once

#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"

namespace franca::cuda {

// Whether the code that is being compiled can have these instructions at all.
#if defined(FRANCA_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kWarpgroupProducts = true;
#else
constexpr bool kWarpgroupProducts = false;
#endif

constexpr int kWarpgroupTiles = 16;  // 16x8 parts that a warp holds

#if defined(FRANCA_EMULATION)

inline uint32_t matrix_address(const void* shared) {
  return emulation::shared_address(shared);
}

// What the threads have written to shared memory can be read by tensor cores after it, and a
// barrier.
inline void fence_for_tensor_cores() {
  emulation::proxy_fence();
}

inline void fence_warpgroup() {
  emulation::warpgroup_fence();
}

inline void commit_warpgroup() {
  emulation::warpgroup_commit();
}

// Waits for this warp's groups of products but the last `left`.
template <int left>
inline void wait_for_warpgroup() {
  emulation::warpgroup_wait(left);
}

// c += a b^T
template <class T>
inline void multiply_warpgroup(float (&c)[kWarpgroupTiles][4], uint64_t a, uint64_t b) {
  emulation::warpgroup_multiply({c[0], a, b, [](uint16_t bits) { return to_float(T{bits}); }});
}

inline void pin(float (&)[kWarpgroupTiles][4]) {}

#else

__device__ __forceinline__ uint32_t matrix_address(const void* shared) {
  return shared_address(shared);
}

__device__ __forceinline__ void fence_for_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void fence_warpgroup() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_warpgroup() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int left>
__device__ __forceinline__ void wait_for_warpgroup() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

#define FRANCA_WGMMA(type)                                                                        \
  asm volatile(                                                                                   \
      "{.reg .pred add; setp.eq.u32 add, 0, 0;"                                                   \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                \
      " "                                                                                         \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                   \
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "         \
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "        \
      "%64, %65, add, 1, 1, 0, 0;}"                                                               \
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), \
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), \
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), \
        "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), \
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]), \
        "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]), \
        "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]),               \
        "+f"(c[10][1]), "+f"(c[10][2]), "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]),           \
        "+f"(c[11][2]), "+f"(c[11][3]), "+f"(c[12][0]), "+f"(c[12][1]), "+f"(c[12][2]),           \
        "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]),           \
        "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), "+f"(c[15][0]),           \
        "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3])                                            \
      : "l"(a), "l"(b))

__device__ __forceinline__ void multiply_warpgroup(float (&c)[kWarpgroupTiles][4], uint64_t a,
                                                   uint64_t b, const BFloat16*) {
  FRANCA_WGMMA("bf16");
}

__device__ __forceinline__ void multiply_warpgroup(float (&c)[kWarpgroupTiles][4], uint64_t a,
                                                   uint64_t b, const Float16*) {
  FRANCA_WGMMA("f16");
}
#undef FRANCA_WGMMA

template <class T>
__device__ __forceinline__ void multiply_warpgroup(float (&c)[kWarpgroupTiles][4], uint64_t a,
                                                   uint64_t b) {
  multiply_warpgroup(c, a, b, static_cast<const T*>(nullptr));
}

// The compiler, which knows nothing of the wait, must not read accumulators ahead of it.
__device__ __forceinline__ void pin(float (&c)[kWarpgroupTiles][4]) {
#pragma unroll
  for (int i = 0; i < kWarpgroupTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+f"(c[i][j])::"memory");
  }
}

#endif

// Describes a factor of 64 (a) or 128 (b) rows to multiply_warpgroup, its first 16 elements of the
// depth; the next 16 lie kNextDepth further on.
constexpr uint64_t kNextDepth = 32 >> 4;

__device__ __forceinline__ uint64_t describe_factor(const void* shared) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  const uint32_t low = (matrix_address(shared) & 0x3ffff) >> 4;
  return warp_uniform(low) | kEightRows << 32 | kSwizzle128 << 62;
}

}  // namespace franca::cuda
