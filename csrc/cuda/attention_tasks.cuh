// Which sequences a block of the attention kernels has.
#pragma once

#include "cuda/primitives/block.cuh"

namespace franca::cuda {

constexpr int kUnit = 16;       // rows and columns of a step
constexpr int kMostRuns = 128;  // of one launch: they travel as a kernel parameter
constexpr int kMostWarps = 6;   // of a block that streams

// [tokens, heads, head_dim] in bytes.
struct Packed {
  char* data;
  int64_t token_bytes;
  int64_t head_bytes;
};

struct PackedRun {
  int first_token;
  int length;
  int n_sequences;
  int first_task;
  int share;  // sequences of a task or, where they are streamed, tasks of a sequence
};

// Runs of sequences; tasks are numbered through all of them. A task is the work of one block: whole
// sequences, or some rows of one for each warp.
struct Schedule {
  int n_runs;
  int n_heads;
  PackedRun run[kMostRuns];
};

struct Task {
  int64_t first_token;
  int length;
  int head;
  int n_sequences;
  int part;  // which of the tasks of a sequence that is streamed
};

__device__ __forceinline__ int warp_count() {
  return static_cast<int>(blockDim.x) / kWarpSize;
}

// The task of this block. Heads change fastest: their rows are neighbours in memory.
template <bool whole>
__device__ __forceinline__ Task find_task(const Schedule& schedule) {
  const int number = static_cast<int>(blockIdx.x) / schedule.n_heads;
  int r = 0;
  while (r + 1 < schedule.n_runs && schedule.run[r + 1].first_task <= number) ++r;
  const PackedRun& run = schedule.run[r];
  const int local = number - run.first_task;
  const int sequence = whole ? local * run.share : local / run.share;
  const int left = run.n_sequences - sequence;
  return {run.first_token + static_cast<int64_t>(sequence) * run.length, run.length,
          static_cast<int>(blockIdx.x) % schedule.n_heads,
          whole && left > run.share ? run.share : left, whole ? 0 : local % run.share};
}

// Kernels that need every register keep their task in shared memory: they read it again after the
// first barrier where they need it.
constexpr int kTaskBytes = 256;

template <bool whole>
__device__ __forceinline__ const Task& keep_task(const Schedule& schedule) {
  auto* kept = reinterpret_cast<Task*>(shared_memory());
  if (threadIdx.x == 0) *kept = find_task<whole>(schedule);
  block_barrier();
  return *kept;
}

__device__ __forceinline__ int units_of(int length) {
  return divide_up(length, kUnit);
}

// The first token of the task.
__device__ __forceinline__ char* begin_of(const Packed& packed, const Task& task) {
  return packed.data + task.first_token * packed.token_bytes + task.head * packed.head_bytes;
}

}  // namespace franca::cuda
