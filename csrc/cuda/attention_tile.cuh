// What the attention kernels share: tiles of a head in shared memory and in registers, and their
// products on tensor cores.
//
// Every warp keeps "rows" in registers, in units of 16, and passes over "columns" in shared memory,
// 16 at a time: queries against keys, or for dK and dV keys against queries. Work is thus cut to
// multiples of 16 on both sides, whatever the length. The 16-byte packs of a row in shared memory
// are permuted by the row, so that the eight rows of a matrix load lie in different banks.
#pragma once

#include "cuda/attention_tasks.cuh"
#include "cuda/primitives/matrix.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"

namespace franca::cuda {

constexpr int kStreamed = 64;  // columns that are streamed at a time

// Rows in shared memory.

template <int D>
constexpr int kHeadPacks = D * 2 / kPackBytes;

// Where pack `pack` of row `row` lies in shared memory.
template <int D>
__device__ __forceinline__ int head_place(int row, int pack) {
  return row * kHeadPacks<D> + (pack ^ (row & 7));
}

// Starts copies of rows of N tensors, in order. Each thread has one pack of some of the rows.
template <int D, int N>
struct RowCopies {
  const char* from[N];
  int64_t token_bytes[N];
  uint4* to[N];
  int row = static_cast<int>(threadIdx.x) / kHeadPacks<D>;
  int inside;  // its sequence
  int length, padded;

  // From row `first` of the task's sequence on. Sequences of a task follow each other, each
  // padded to `padded_` rows, which are at least those that the block copies at once.
  __device__ __forceinline__ RowCopies(uint4* const (&to_)[N], const Packed* const (&packed)[N],
                                       const Task& task, int first, int padded_)
      : inside(first + row), length(task.length), padded(padded_) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      token_bytes[n] = packed[n]->token_bytes;
      from[n] = begin_of(*packed[n], task) + inside * token_bytes[n] + pack() * kPackBytes;
      to[n] = to_[n];
    }
  }

  // Up to row `end`. Rows that do not exist become zeros, and their addresses are not used.
  __device__ __forceinline__ void copy_until(int end) {
    const int rows = static_cast<int>(blockDim.x) / kHeadPacks<D>;
#pragma unroll 1
    for (; row < end; row += rows) {
      const int bytes = inside < length ? kPackBytes : 0;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        copy_async(to[n] + head_place<D>(row, pack()), from[n], bytes);
        from[n] += rows * token_bytes[n];
      }
      inside += rows;
      if (inside < padded) continue;
      inside -= padded;
#pragma unroll
      for (int n = 0; n < N; ++n) from[n] -= (padded - length) * token_bytes[n];
    }
  }

  static __device__ __forceinline__ int pack() {
    return static_cast<int>(threadIdx.x) % kHeadPacks<D>;
  }
};

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

// Rows in registers.

// Rows of a warp as factors of products: 16 x D.
template <int D>
struct Rows {
  Fragment step[D / 16];
};

// Row of the unit that a lane holds in half 0 or 1 of its registers.
__device__ __forceinline__ int lane_row(int unit, int half) {
  return unit * kUnit + half * 8 + lane_index() / 4;
}

// Column, within its 16, of element e of accumulator j.
__device__ __forceinline__ int lane_column(int j, int e) {
  return j * 8 + lane_index() % 4 * 2 + e % 2;
}

// Rows pass between memory, where packs of a row are neighbours, and fragments through a stage in
// shared memory that is the warp's own: a unit of rows and 32 elements of each at a time.
constexpr int kStageWidth = 32;
constexpr int kStageRowPacks = kStageWidth * 2 / kPackBytes;
constexpr int kStagePacks = kUnit * kStageRowPacks;

__device__ __forceinline__ int stage_place(int row, int pack) {
  return row * kStageRowPacks + (pack ^ (row / 2 % kStageRowPacks));
}

// A lane moves two packs between a stage and memory.
__device__ __forceinline__ int stage_row(int i) {
  return lane_index() / kStageRowPacks + i * 8;
}
__device__ __forceinline__ int stage_pack() {
  return lane_index() % kStageRowPacks;
}

// Where a lane's first pack of a unit lies in memory; the second is 8 rows further on.
__device__ __forceinline__ char* stage_begin(const Packed& packed, const Task& task, int unit) {
  return begin_of(packed, task) + (unit * kUnit + stage_row(0)) * packed.token_bytes +
         stage_pack() * kPackBytes;
}

// Reads packs of rows as they lie in memory; deal_rows makes factors of them. Until then nothing
// waits for memory.
template <int D>
__device__ __forceinline__ void read_rows(Rows<D>& rows, const Packed& packed, const Task& task,
                                          int unit) {
  const char* begin = stage_begin(packed, task, unit);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool exists = unit * kUnit + stage_row(i) < task.length;
    const char* from = begin + i * 8 * packed.token_bytes;
#pragma unroll
    for (int part = 0; part < D / kStageWidth; ++part) {
      uint4 pack = make_uint4(0, 0, 0, 0);
      if (exists) pack = load_vector_read_only(from + part * kStageWidth * 2);
      rows.step[2 * part + i] = {{pack.x, pack.y, pack.z, pack.w}};
    }
  }
}

template <int D>
__device__ __forceinline__ void deal_rows(Rows<D>& rows, uint4* stage) {
#pragma unroll
  for (int part = 0; part < D / kStageWidth; ++part) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t (&word)[4] = rows.step[2 * part + i].word;
      store_vector(stage + stage_place(stage_row(i), stage_pack()),
                   make_uint4(word[0], word[1], word[2], word[3]));
    }
    warp_barrier();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int place = stage_place(lane_index() % 16, 2 * k + lane_index() / 16);
      rows.step[2 * part + k] = load_fragment(stage + place);
    }
    warp_barrier();
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
                                           const Sums<D>& sums, const float (&factor)[2],
                                           uint4* stage) {
  char* begin = stage_begin(packed, task, unit);
  auto* words = reinterpret_cast<uint32_t*>(stage);
  const int word = 4 * stage_place(lane_row(0, 0), 0) + lane_index() % 4;
#pragma unroll
  for (int part = 0; part < D / kStageWidth; ++part) {
#pragma unroll
    for (int j = 0; j < kStageRowPacks; ++j) {
      const float (&pair)[4] = sums.value[part * kStageRowPacks + j];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Packs are permuted: pack j is where the bits of j differ. Rows 8 apart are not.
        words[(word ^ (4 * j)) + half * 8 * 4 * kStageRowPacks] =
            make_pair<T>(pair[2 * half] * factor[half], pair[2 * half + 1] * factor[half]);
      }
    }
    warp_barrier();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (unit * kUnit + stage_row(i) >= task.length) continue;
      store_vector(begin + i * 8 * packed.token_bytes + part * kStageWidth * 2,
                   load_vector(stage + stage_place(stage_row(i), stage_pack())));
    }
    warp_barrier();
  }
}

// Products.

// Scores of 16 rows and 16 columns.
struct Scores {
  float value[2][4];
};

// The places of a lane in matrix loads of 16 columns: as they are, for products with rows, and
// transposed or as rows, for sums over them.
template <int D>
__device__ __forceinline__ SharedAddress dot_place(const uint4* columns) {
  const int lane = lane_index();
  return shared_address(columns + head_place<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2));
}
template <int D>
__device__ __forceinline__ SharedAddress sum_place(const uint4* columns) {
  return shared_address(columns + head_place<D>(lane_index() % 16, lane_index() / 16));
}

// The place 16 k elements and then `rows` rows, a multiple of 8, further on. Packs are permuted, so
// that addresses of neighbouring elements differ in the bits of k instead of by it.
template <int D>
__device__ __forceinline__ SharedAddress moved(SharedAddress place, int k, int rows) {
  return (place ^ static_cast<SharedAddress>(2 * k * kPackBytes)) +
         static_cast<SharedAddress>(rows * kHeadPacks<D> * kPackBytes);
}

// <row, column> for 16 columns from `first` on, at a dot_place; rows(u, k) is the factor that has
// elements [16 k, 16 k + 16) of unit u.
template <class T, int D, int kUnits, class RowFactor>
__device__ __forceinline__ void multiply(Scores (&scores)[kUnits], const RowFactor& rows,
                                         SharedAddress place, int first = 0) {
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
#pragma unroll
    for (int e = 0; e < 8; ++e) scores[u].value[e / 4][e % 4] = 0.0f;
  }
  Fragment next = load_fragment(moved<D>(place, 0, first));
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    const Fragment b = next;
    if (k + 1 < D / 16) next = load_fragment(moved<D>(place, k + 1, first));
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const Fragment a = rows(u, k);
      multiply_add<T>(scores[u].value[0], a, b.word[0], b.word[1]);
      multiply_add<T>(scores[u].value[1], a, b.word[2], b.word[3]);
    }
  }
}

// Scores as a factor.
template <class T>
__device__ __forceinline__ Fragment as_factor(const Scores& scores) {
  const float (&v)[2][4] = scores.value;
  return {{make_pair<T>(v[0][0], v[0][1]), make_pair<T>(v[0][2], v[0][3]),
           make_pair<T>(v[1][0], v[1][1]), make_pair<T>(v[1][2], v[1][3])}};
}

// Adds weights (16 x 16 for each unit) times the first W elements of 16 columns from `first` on, at
// a sum_place.
template <class T, int D, int W, int kUnits>
__device__ __forceinline__ void add_weighted(Sums<W> (&sums)[kUnits],
                                             const Fragment (&weights)[kUnits], SharedAddress place,
                                             int first = 0) {
  Fragment next = load_fragment_transposed(moved<D>(place, 0, first));
#pragma unroll
  for (int j = 0; j < W / 16; ++j) {
    const Fragment b = next;
    if (j + 1 < W / 16) next = load_fragment_transposed(moved<D>(place, j + 1, first));
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      multiply_add<T>(sums[u].value[2 * j], weights[u], b.word[0], b.word[1]);
      multiply_add<T>(sums[u].value[2 * j + 1], weights[u], b.word[2], b.word[3]);
    }
  }
}

}  // namespace franca::cuda
