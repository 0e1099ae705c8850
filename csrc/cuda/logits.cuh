// Views of ragged logits as kernels take them, and the arithmetic that all passes share.
//
// A pass cuts every head into slices of kSliceColumns columns. Blocks are numbered over the slices
// of all heads, so one launch serves heads of any width.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "franca/views.hpp"

namespace franca::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kColumnsPerThread = 8;
constexpr int kSliceColumns = kThreads * kColumnsPerThread;
constexpr int kMaxHeads = 16;

struct Matrix {
  char* data;
  int64_t row_bytes;
  int64_t columns;
  bool vectors;  // every row starts at a multiple of 16 bytes
};

struct HeadView : Matrix {
  int64_t first_column;  // in vectors over the prototypes of all heads
  int64_t first_slice;
};

struct Heads {
  HeadView head[kMaxHeads];
  int n_heads;
  int64_t n_rows;
  int64_t n_columns;  // of all heads
  int64_t n_slices;
};

// 1/T as the sum of two floats, so that z/T is exact to the last bit of a float.
struct InverseTemperature {
  float high;
  float low;
};

inline void check_temperature(double temperature) {
  if (temperature > 0) return;
  throw std::invalid_argument("temperature " + std::to_string(temperature) + " is not positive");
}

inline InverseTemperature inverse(double temperature) {
  check_temperature(temperature);
  const auto high = static_cast<float>(1.0 / temperature);
  return {high, static_cast<float>(1.0 / temperature - static_cast<double>(high))};
}

inline dim3 grid_of(int64_t x, int64_t y = 1) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

inline Matrix make_matrix(const Head& head, DType dtype) {
  const int64_t row_bytes = head.row_stride * size_of(dtype);
  const bool vectors =
      reinterpret_cast<std::uintptr_t>(head.data) % kPackBytes == 0 && row_bytes % kPackBytes == 0;
  return {static_cast<char*>(head.data), row_bytes, head.columns, vectors};
}

inline void check_valid_rows(int64_t n_valid, int64_t n_rows) {
  if (n_valid >= 0 && n_valid <= n_rows) return;
  throw std::invalid_argument("n_valid " + std::to_string(n_valid) + "; accepted: 0 to " +
                              std::to_string(n_rows));
}

inline void check_heads(int64_t n_heads) {
  if (n_heads >= 1 && n_heads <= kMaxHeads) return;
  throw std::invalid_argument(std::to_string(n_heads) + " heads; accepted: 1 to " +
                              std::to_string(kMaxHeads));
}

inline Heads make_heads(const RaggedLogits& logits) {
  check_heads(logits.n_heads);
  Heads heads{};
  heads.n_heads = static_cast<int>(logits.n_heads);
  heads.n_rows = logits.n_rows;
  for (int h = 0; h < heads.n_heads; ++h) {
    if (logits.heads[h].columns < 1) throw std::invalid_argument("a head without columns");
    static_cast<Matrix&>(heads.head[h]) = make_matrix(logits.heads[h], logits.dtype);
    heads.head[h].first_column = heads.n_columns;
    heads.head[h].first_slice = heads.n_slices;
    heads.n_columns += logits.heads[h].columns;
    heads.n_slices += divide_up(logits.heads[h].columns, kSliceColumns);
  }
  return heads;
}

// The slice of one block.
struct Slice {
  int head;
  int64_t begin;    // column within the head
  int64_t columns;  // of the head, from the slice's first on
};

__device__ __forceinline__ Slice find_slice(const Heads& heads, int64_t slice) {
  int h = heads.n_heads - 1;
  while (heads.head[h].first_slice > slice) --h;
  const int64_t begin = (slice - heads.head[h].first_slice) * kSliceColumns;
  return {h, begin, heads.head[h].columns - begin};
}

__host__ __device__ __forceinline__ int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <class T>
__device__ __forceinline__ T* row_of(const Matrix& matrix, int64_t n) {
  return reinterpret_cast<T*>(matrix.data + n * matrix.row_bytes);
}

// Up to kPack<T> elements from `from`, of which `left` exist; the others are 0. `read_only`: nobody
// writes them while the kernel runs.
template <class T, bool read_only = true>
__device__ __forceinline__ uint4 load_pack(const T* from, int64_t left, bool vectors) {
  if (vectors && left >= kPack<T>) {
    return read_only ? load_vector_read_only(from) : load_vector(from);
  }
  float values[kPack<T>];
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) values[i] = i < left ? to_float(from[i]) : 0.0f;
  return make_pack(values, from);
}

template <class T>
__device__ __forceinline__ void store_pack(T* to, const float (&values)[kPack<T>], int64_t left,
                                           bool vectors) {
  if (vectors && left >= kPack<T>) {
    store_vector(to, make_pack(values, to));
    return;
  }
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) {
    if (i < left) assign(to[i], values[i]);
  }
}

// A thread's kColumnsPerThread neighbouring columns of one row.
template <class T>
struct Columns {
  static constexpr int kPacks = kColumnsPerThread / kPack<T>;
  uint4 pack[kPacks];

  template <bool read_only = true>
  __device__ __forceinline__ void load(const T* from, int64_t left, bool vectors) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      pack[i] = load_pack<T, read_only>(from + i * kPack<T>, left - i * kPack<T>, vectors);
    }
  }

  __device__ __forceinline__ static void store(T* to, const float (&values)[kColumnsPerThread],
                                               int64_t left, bool vectors) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      float part[kPack<T>];
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) part[j] = values[i * kPack<T> + j];
      store_pack(to + i * kPack<T>, part, left - i * kPack<T>, vectors);
    }
  }

  __device__ __forceinline__ void get(float (&values)[kColumnsPerThread]) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      float part[kPack<T>];
      unpack(part, pack[i], static_cast<const T*>(nullptr));
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) values[i * kPack<T> + j] = part[j];
    }
  }
};

// z/T + potential. The large terms cancel before the small ones are added.
__device__ __forceinline__ float exponent(float z, InverseTemperature scale, float potential) {
  return fmaf(z, scale.low, fmaf(z, scale.high, potential));
}

// z/T + potential, and + offset, for one type of logits: the second float of 1/T matters for
// float32 only. 16-bit logits are known to 2^-9 at best, and the first is off by 2^-25 for all of
// them alike, as if T were.
template <class T>
__device__ __forceinline__ float exponent_of(float z, InverseTemperature scale, float potential) {
  const float main = fmaf(z, scale.high, potential);
  return sizeof(T) == sizeof(float) ? fmaf(z, scale.low, main) : main;
}

template <class T>
__device__ __forceinline__ float exponent_of(float z, InverseTemperature scale, float potential,
                                             float offset) {
  const float main = fmaf(z, scale.high, potential) + offset;
  return sizeof(T) == sizeof(float) ? fmaf(z, scale.low, main) : main;
}

// Sums of exponentials that lie in here have lost nothing that matters to underflow.
constexpr float kSmallestSum = 0x1p-80f, kLargestSum = 0x1p100f;

// log of a sum of exponentials as maximum + log(total); empty: -inf and 0.
struct LogSumExp {
  float maximum = -kInfinity;
  float total = 0.0f;

  // -inf as a shift would make nan of -inf - -inf.
  __device__ __forceinline__ static float shift(float maximum) {
    return maximum == -kInfinity ? 0.0f : maximum;
  }

  __device__ __forceinline__ void raise(float new_maximum) {
    total *= fast_exp(maximum - shift(new_maximum));
    maximum = new_maximum;
  }

  template <int count>
  __device__ __forceinline__ void add(const float (&x)[count]) {
    float largest = maximum;
#pragma unroll
    for (int i = 0; i < count; ++i) largest = fmaxf(largest, x[i]);
    raise(largest);
    const float offset = shift(largest);
#pragma unroll
    for (int i = 0; i < count; ++i) total += fast_exp(x[i] - offset);
  }

  __device__ __forceinline__ void merge(LogSumExp other) {
    raise(fmaxf(maximum, other.maximum));
    total += other.total * fast_exp(other.maximum - shift(maximum));
  }

  // The same result in all lanes of a warp.
  __device__ __forceinline__ void merge_warp() {
    raise(warp_maximum(maximum));
    total = warp_sum(total);
  }
};

// exp(z/T) of a difference of logits.
template <class T>
__device__ __forceinline__ float exp_of(float z, InverseTemperature scale) {
  if (sizeof(T) == sizeof(float)) return fast_exp(exponent_of<T>(z, scale, 0.0f));
  return exp2_fast(z * (scale.high * kLog2E));
}

// A running log-sum-exp of z/T: the largest logit, and the sum of exp((z - it)/T).
template <class T>
struct ScaledSum {
  float largest = -kInfinity;
  float total = 0.0f;

  // Logits from `count` on do not exist.
  template <int most>
  __device__ __forceinline__ void add(const float (&z)[most], int count, InverseTemperature scale) {
    float larger = largest;
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (i < count) larger = fmaxf(larger, z[i]);
    }
    const float offset = LogSumExp::shift(larger);
    if (total > 0.0f) total *= exp_of<T>(largest - offset, scale);
    largest = larger;
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (i < count) total += exp_of<T>(z[i] - offset, scale);
    }
  }

  __device__ __forceinline__ LogSumExp logsumexp(InverseTemperature scale) const {
    return {total > 0.0f ? exponent(largest, scale, 0.0f) : -kInfinity, total};
  }
};

// First slice of the head after `h`.
__device__ __forceinline__ int64_t end_of_slices(const Heads& heads, int h) {
  return h + 1 < heads.n_heads ? heads.head[h + 1].first_slice : heads.n_slices;
}

// The log-sum-exp of a row from those of its slices, partial[n, slice], in all lanes of the warp.
__device__ __forceinline__ LogSumExp merge_slices(const Heads& heads, int h, int64_t n,
                                                  const float2* partial) {
  const int64_t end = end_of_slices(heads, h);
  LogSumExp sum;
  for (int64_t s = heads.head[h].first_slice + lane_index(); s < end; s += kWarpSize) {
    const float2 part = partial[n * heads.n_slices + s];
    sum.merge({part.x, part.y});
  }
  sum.merge_warp();
  return sum;
}

constexpr std::size_t kSliceBytes = kSliceColumns * sizeof(float);

// Copies the slice's potentials to shared memory, -inf beyond the head's last column.
__device__ __forceinline__ void load_potentials(float* shared, const float* potential,
                                                int64_t columns) {
  for (int i = threadIdx.x; i < kSliceColumns; i += kThreads) {
    shared[i] = i < columns ? potential[i] : -kInfinity;
  }
}

constexpr int64_t kMostBlocksAlongY = 65535;

// How many rows each of several blocks takes, so that all multiprocessors have work but no more
// partial results are written than that needs.
struct Chunks {
  int64_t rows;
  int64_t count;
};

inline Chunks share_rows(int64_t n_rows, int64_t n_slices, int multiprocessors) {
  constexpr int64_t kBlocksPerMultiprocessor = 6, kFewestRows = 32;
  const int64_t wanted = divide_up(kBlocksPerMultiprocessor * multiprocessors, n_slices);
  const int64_t chunks = smaller(wanted, divide_up(n_rows, kFewestRows));
  if (chunks < 1) return {kFewestRows, 1};
  const int64_t rows = divide_up(n_rows, chunks);
  return {rows, divide_up(n_rows, rows)};
}

// Few rows for each of many blocks, where nothing is to be added up afterwards: all multiprocessors
// then end at about the same time.
inline Chunks short_chunks(int64_t n_rows, int64_t n_slices, int multiprocessors) {
  constexpr int64_t kMostRows = 64, kBlocksPerMultiprocessor = 12;
  const int64_t wanted = divide_up(kBlocksPerMultiprocessor * multiprocessors, n_slices);
  const int64_t few = smaller(divide_up(n_rows, wanted), kMostRows);
  const int64_t rows = std::max<int64_t>({kWarps, few, divide_up(n_rows, kMostBlocksAlongY)});
  return {rows, n_rows > 0 ? divide_up(n_rows, rows) : 1};
}

// Calls body(pointer to the element type).
template <class Body>
void with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::float32:
      return body(static_cast<float*>(nullptr));
    case DType::bfloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::float16:
      return body(static_cast<Float16*>(nullptr));
  }
  throw std::invalid_argument("unknown element type");
}

// Cuts a workspace into arrays that start at multiples of 256 bytes. With a null pointer it only
// adds up what is needed.
class Workspace {
 public:
  Workspace(void* begin, std::size_t bytes) : begin_(static_cast<char*>(begin)), bytes_(bytes) {}

  template <class T>
  T* take(int64_t count) {
    constexpr std::size_t kAlignment = 256;
    const std::size_t offset = used_;
    used_ +=
        (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (begin_ == nullptr) return nullptr;
    if (used_ > bytes_) {
      throw std::invalid_argument("workspace of " + std::to_string(bytes_) + " bytes is too small");
    }
    return reinterpret_cast<T*>(begin_ + offset);
  }

  std::size_t used() const { return used_; }

 private:
  char* begin_;
  std::size_t bytes_;
  std::size_t used_ = 0;
};

}  // namespace franca::cuda
