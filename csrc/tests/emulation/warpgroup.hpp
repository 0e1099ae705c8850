// Products of a warpgroup as the emulated device forms them: from shared memory as the tensor cores
// see it, as late as the waits allow or at once, as the seed decides. In between, nobody may touch
// the accumulators.
//
// The tensor cores see what a thread wrote to shared memory after that thread's next proxy fence;
// an asynchronous copy that happens at once they may see earlier.
#pragma once

#include <cstddef>
#include <cstdint>

namespace franca::emulation {

struct AsyncCopy;

constexpr int kWarpgroupColumns = 128;
constexpr int kWarpgroupAccumulators = kWarpgroupColumns / 2;  // of a thread

// m64n128k16: accumulators += a b^T
struct WarpgroupProduct {
  float* accumulators;
  uint64_t a, b;  // matrix descriptors
  float (*to_float)(uint16_t);
};

// Every thread of the warp must take part, with the same descriptors.
void warpgroup_multiply(const WarpgroupProduct& product);
void warpgroup_fence();
void warpgroup_commit();
void warpgroup_wait(std::size_t groups_left);

// Address within the block's shared memory, as descriptors have it.
uint32_t shared_address(const void* pointer);

void proxy_fence();
// An ordinary store, which the tensor cores do not see before the fence.
void store_shared(void* to, const void* from, std::size_t bytes);
void show_to_tensor_cores(const AsyncCopy& written);

}  // namespace franca::emulation
