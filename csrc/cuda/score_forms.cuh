// The two forms in which a block multiplies a step of a tile of scores: by warps (mma.sync, every
// device) and by warpgroups (wgmma, sm_90a). They differ in who holds which scores.
//
// A step is 64 elements of the depth: 128 rows of 128 bytes of either factor in shared memory,
// their 16-byte packs permuted by the row, so that eight rows of a pack lie in different banks. It
// starts at a multiple of 1024 bytes.
#pragma once

#include "cuda/logits.cuh"
#include "cuda/primitives/matrix.cuh"
#include "cuda/primitives/warpgroup.cuh"

namespace franca::cuda {

constexpr int kTileRows = 128;     // of the factor that a block holds
constexpr int kTileColumns = 128;  // rows of the other factor, which pass by
constexpr int kDepth = 64;
constexpr int kPacksPerRow = kDepth * 2 / kPackBytes;
constexpr int kStepPacks = kTileRows * kPacksPerRow;

// Where pack `pack` of row `row` lies in a step.
__device__ __forceinline__ int place(int row, int pack) {
  return row * kPacksPerRow + (pack ^ (row % kPacksPerRow));
}

// The scores that a lane holds, of 16 x 8 parts of the tile.
template <int down, int across, int warps_across>
struct LaneScores {
  static constexpr int kRows = 2 * down, kColumns = 2 * across;
  static constexpr int kWarpsAcross = warps_across, kWarpsDown = kWarps / warps_across;

  float value[down][across][4];

  __device__ __forceinline__ float& at(int r, int c) {
    return value[r / 2][c / 2][2 * (r % 2) + c % 2];
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) at(r, c) = 0.0f;
    }
  }
  __device__ __forceinline__ static int warp_down() { return warp_index() / warps_across; }
  __device__ __forceinline__ static int warp_across() { return warp_index() % warps_across; }
  // Within the tile.
  __device__ __forceinline__ static int row(int r) {
    return warp_down() * down * 16 + (r / 2) * 16 + (r % 2) * 8 + lane_index() / 4;
  }
  __device__ __forceinline__ static int column(int c) {
    return warp_across() * across * 8 + (c / 2) * 8 + lane_index() % 4 * 2 + c % 2;
  }
};

// A warp has 64 x 32 scores; 2 warps stand above each other and 4 side by side.
struct ByWarps {
  using Tile = LaneScores<4, 4, 4>;
  static constexpr bool kCompiled = true;
  // Steps whose product may go on while the threads are at the next one.
  static constexpr int kInFlight = 0;

  __device__ __forceinline__ static void publish() {}
  __device__ __forceinline__ static void wait_for_step() {}
  __device__ __forceinline__ static void wait(Tile&) {}

  // tile += x v^T over a step.
  template <class T>
  __device__ __forceinline__ static void multiply(Tile& tile, const uint4* x, const uint4* v) {
    const int lane = lane_index();
    // The rows of a lane differ by multiples of 8, so its packs are permuted in the same way.
    const int of_x = place(Tile::warp_down() * 64 + lane % 16, lane / 16);
    const int of_v = place(Tile::warp_across() * 32 + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      const uint4* from_x = x + (of_x ^ (2 * k));
      const uint4* from_v = v + (of_v ^ (2 * k));
      Fragment b[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) b[j] = load_fragment(from_v + j * 16 * kPacksPerRow);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Fragment a = load_fragment(from_x + i * 16 * kPacksPerRow);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Fragment& pair = b[j / 2];
          multiply_add<T>(tile.value[i][j], a, pair.word[j % 2 * 2], pair.word[j % 2 * 2 + 1]);
        }
      }
    }
  }
};

// A warpgroup has 64 x 128 scores, each of its warps 16 x 128.
struct ByWarpgroups {
  using Tile = LaneScores<1, kWarpgroupTiles, 1>;
  static constexpr bool kCompiled = kWarpgroupProducts;
  static constexpr int kInFlight = 1;

  // What this thread has written to shared memory; a barrier must follow.
  __device__ __forceinline__ static void publish() { fence_for_tensor_cores(); }

  // For all steps but the last.
  __device__ __forceinline__ static void wait_for_step() { wait_for_warpgroup<kInFlight>(); }

  __device__ __forceinline__ static void wait(Tile& tile) {
    wait_for_warpgroup<0>();
    pin(tile.value[0]);
  }

  template <class T>
  __device__ __forceinline__ static void multiply(Tile& tile, const uint4* x, const uint4* v) {
    const uint64_t a = describe_factor(x + warp_index() / 4 * 64 * kPacksPerRow);
    const uint64_t b = describe_factor(v);
    pin(tile.value[0]);
    fence_warpgroup();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      multiply_warpgroup<T>(tile.value[0], a + k * kNextDepth, b + k * kNextDepth);
    }
    commit_warpgroup();
  }
};

}  // namespace franca::cuda
