// What the attention kernels share: which rows a block has, tiles of a head in shared memory and in
// registers, and their products on tensor cores.
//
// Every kernel keeps "rows" in registers, 16 for each warp, and streams "columns" through shared
// memory, in steps of 16: queries against keys, or for dK and dV keys against queries. Work is thus
// cut to multiples of 16 on both sides, whatever the length. The 16-byte packs of a row in shared
// memory are permuted by the row, so that the eight rows of a matrix load lie in different banks.
#pragma once

#include "cuda/primitives/block.cuh"
#include "cuda/primitives/matrix.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"

namespace franca::cuda {

constexpr int kUnit = 16;       // rows of a warp, and columns of a step
constexpr int kStreamed = 64;   // columns that are streamed at a time
constexpr int kMostRuns = 128;  // of one launch: they travel as a kernel parameter
constexpr int kMostWarps = 6;

// [tokens, heads, head_dim] in bytes.
struct Packed {
  char* data;
  int64_t token_bytes;
  int64_t head_bytes;
};

struct PackedRun {
  int first_token;
  int length;
  int first_task;
  int tasks;  // of one sequence
};

// Runs of sequences; tasks are numbered through all of them. A task is the work of one block: a
// whole sequence, or kUnit rows of it for each warp.
struct Schedule {
  int n_runs;
  int n_heads;
  PackedRun run[kMostRuns];
};

struct Task {
  int64_t first_token;
  int length;
  int head;
  int first_unit;
};

__device__ __forceinline__ int warp_count() {
  return static_cast<int>(blockDim.x) / kWarpSize;
}

// The task of this block. Heads change fastest: their rows are neighbours in memory.
__device__ __forceinline__ Task find_task(const Schedule& schedule) {
  const int number = static_cast<int>(blockIdx.x) / schedule.n_heads;
  int r = 0;
  while (r + 1 < schedule.n_runs && schedule.run[r + 1].first_task <= number) ++r;
  const PackedRun& run = schedule.run[r];
  const int local = number - run.first_task, sequence = local / run.tasks;
  return {run.first_token + static_cast<int64_t>(sequence) * run.length, run.length,
          static_cast<int>(blockIdx.x) % schedule.n_heads, local % run.tasks * warp_count()};
}

__device__ __forceinline__ int units_of(int length) {
  return (length + kUnit - 1) / kUnit;
}

// The first token of the task's sequence.
__device__ __forceinline__ char* begin_of(const Packed& packed, const Task& task) {
  return packed.data + task.first_token * packed.token_bytes + task.head * packed.head_bytes;
}

// Rows and packs.

template <int D>
constexpr int kHeadPacks = D * 2 / kPackBytes;

// Where pack `pack` of row `row` lies in shared memory.
template <int D>
__device__ __forceinline__ int head_place(int row, int pack) {
  return row * kHeadPacks<D> + (pack ^ (row % 8));
}

// Starts copying rows [first, first + count) of a sequence; rows beyond its end become zeros.
template <int D>
__device__ __forceinline__ void fetch_rows(uint4* shared, const Packed& packed, const Task& task,
                                           int first, int count) {
  const char* begin = begin_of(packed, task);
  for (int i = threadIdx.x; i < count * kHeadPacks<D>; i += static_cast<int>(blockDim.x)) {
    const int row = i / kHeadPacks<D>, pack = i % kHeadPacks<D>;
    const bool exists = first + row < task.length;
    const int64_t offset = (first + row) * packed.token_bytes + pack * kPackBytes;
    copy_async(shared + head_place<D>(row, pack), exists ? begin + offset : begin,
               exists ? kPackBytes : 0);
  }
}

// Streams columns through two buffers in turn: fetch(buffer, first) starts the copies of kStreamed
// columns and step(buffer, first) reads them. Every thread of the block must take part.
template <class Fetch, class Step>
__device__ __forceinline__ void stream_columns(int length, const Fetch& fetch, const Step& step) {
  fetch(0, 0);
  commit_copies();
#pragma unroll 1
  for (int first = 0; first < length; first += kStreamed) {
    const int next = first + kStreamed;
    if (next < length) fetch(next / kStreamed % 2, next);
    commit_copies();
    wait_for_copies<1>();
    block_barrier();
    step(first / kStreamed % 2, first);
    // The next copies overwrite what was just read.
    block_barrier();
  }
}

// Rows of a warp as factors of products: 16 x D.
template <int D>
struct Rows {
  Fragment step[D / 16];
};

// Rows that are held in registers or, where these are needed for sums, in shared memory: each lane
// reads what it wrote itself.
template <int D, bool in_shared>
struct HeldRows {
  static constexpr int kPacks = 0;  // of shared memory, for each warp
  Rows<D> rows;

  __device__ __forceinline__ void hold(const Rows<D>& from, uint4*) { rows = from; }
  __device__ __forceinline__ Fragment at(int k) const { return rows.step[k]; }
};

template <int D>
struct HeldRows<D, true> {
  static constexpr int kPacks = D / 16 * kWarpSize;
  uint4* own;

  __device__ __forceinline__ void hold(const Rows<D>& from, uint4* shared) {
    own = shared + warp_index() * kPacks + lane_index();
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const uint32_t (&word)[4] = from.step[k].word;
      store_vector(own + k * kWarpSize, make_uint4(word[0], word[1], word[2], word[3]));
    }
  }
  __device__ __forceinline__ Fragment at(int k) const {
    const uint4 pack = load_vector(own + k * kWarpSize);
    return {{pack.x, pack.y, pack.z, pack.w}};
  }
};

// Row of the unit that a lane holds in half 0 or 1 of its registers.
__device__ __forceinline__ int lane_row(int unit, int half) {
  return unit * kUnit + half * 8 + lane_index() / 4;
}

// Column, within its 16, of element e of accumulator j.
__device__ __forceinline__ int lane_column(int j, int e) {
  return j * 8 + lane_index() % 4 * 2 + e % 2;
}

// Reads 16 bytes a lane, 64 adjacent ones a row, and deals them out within the four lanes of a row.
template <int D>
__device__ __forceinline__ void load_rows(Rows<D>& rows, const Packed& packed, const Task& task,
                                          int unit) {
  const char* begin = begin_of(packed, task) + lane_index() % 4 * kPackBytes;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane_row(unit, half);
#pragma unroll
    for (int m = 0; m < D / 32; ++m) {
      uint4 pack = make_uint4(0, 0, 0, 0);
      if (row < task.length) {
        pack = load_vector_read_only(begin + row * packed.token_bytes + m * 4 * kPackBytes);
      }
      uint32_t word[4] = {pack.x, pack.y, pack.z, pack.w};
      transpose_quad(word);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        rows.step[2 * m + i / 2].word[half + 2 * (i % 2)] = word[i];
      }
    }
  }
}

// Sums over columns, for the rows of a warp: 16 x D.
template <int D>
struct Sums {
  float value[D / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) value[j][e] = 0.0f;
    }
  }
};

// Stores factor[half] times the sums.
template <class T, int D>
__device__ __forceinline__ void store_rows(const Packed& packed, const Task& task, int unit,
                                           const Sums<D>& sums, const float (&factor)[2]) {
  char* begin = begin_of(packed, task) + lane_index() % 4 * kPackBytes;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane_row(unit, half);
#pragma unroll
    for (int m = 0; m < D / 32; ++m) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&pair)[4] = sums.value[4 * m + i];
        word[i] = make_pair<T>(pair[2 * half] * factor[half], pair[2 * half + 1] * factor[half]);
      }
      transpose_quad(word);
      if (row >= task.length) continue;
      store_vector(begin + row * packed.token_bytes + m * 4 * kPackBytes,
                   make_uint4(word[0], word[1], word[2], word[3]));
    }
  }
}

template <int D, bool in_shared>
__device__ __forceinline__ void load_rows(HeldRows<D, in_shared>& rows, uint4* held,
                                          const Packed& packed, const Task& task, int unit) {
  Rows<D> loaded;
  load_rows(loaded, packed, task, unit);
  rows.hold(loaded, held);
}

// Products.

// Scores of 16 rows and 16 columns.
struct Scores {
  float value[2][4];
};

// <row, column> for the 16 columns in shared memory from `first` on.
template <class T, int D, bool in_shared>
__device__ __forceinline__ void multiply(Scores& scores, const HeldRows<D, in_shared>& rows,
                                         const uint4* columns, int first) {
  const int lane = lane_index();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) scores.value[j][e] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    const int row = first + lane / 16 * 8 + lane % 8;
    const Fragment b = load_fragment(columns + head_place<D>(row, 2 * k + lane / 8 % 2));
    const Fragment a = rows.at(k);
    multiply_add<T>(scores.value[0], a, b.word[0], b.word[1]);
    multiply_add<T>(scores.value[1], a, b.word[2], b.word[3]);
  }
}

// Scores as a factor.
template <class T>
__device__ __forceinline__ Fragment as_factor(const Scores& scores) {
  const float (&v)[2][4] = scores.value;
  return {{make_pair<T>(v[0][0], v[0][1]), make_pair<T>(v[0][2], v[0][3]),
           make_pair<T>(v[1][0], v[1][1]), make_pair<T>(v[1][2], v[1][3])}};
}

// Adds weights (16 x 16) times the 16 columns in shared memory from `first` on.
template <class T, int D>
__device__ __forceinline__ void add_weighted(Sums<D>& sums, const Fragment& weights,
                                             const uint4* columns, int first) {
  const int lane = lane_index();
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    const int row = first + lane % 16;
    const Fragment b = load_fragment_transposed(columns + head_place<D>(row, 2 * j + lane / 16));
    multiply_add<T>(sums.value[2 * j], weights, b.word[0], b.word[1]);
    multiply_add<T>(sums.value[2 * j + 1], weights, b.word[2], b.word[3]);
  }
}

}  // namespace franca::cuda
