// The clustering cross-entropy on scores that are never stored, forward and gradient.
#pragma once

#include "cuda/loss_parameters.cuh"
#include "cuda/score_kernels.cuh"

namespace franca::cuda {

struct StreamedLoss : LossParameters {
  ScoreFactors student;
  ScoreFactors teacher;
  Heads scores;                     // of the student; its rows are the student's
  InverseTemperature student_unit;  // log2(e)/t
  InverseTemperature teacher_unit;
};

// For each tile the products of the teacher rows that the student rows meet, one for each target,
// gathered as they are read; the last one is the student's.
struct LossProducts {
  const StreamedLoss& p;
  int head;
  int64_t first_row, n_rows;
  int64_t first_column, end_column;

  __device__ __forceinline__ int count() const { return p.n_targets + 1; }
  __device__ __forceinline__ const ScoreFactors& side(int product) const {
    return product < p.n_targets ? p.teacher : p.student;
  }
  __device__ __forceinline__ const Matrix& held(int product) const {
    return side(product).features[head];
  }
  __device__ __forceinline__ const Matrix& passing(int product) const {
    return side(product).prototypes[head];
  }
  // Negative: no such student row, or a teacher row that does not exist.
  __device__ __forceinline__ int64_t held_row(int product, int r) const {
    const int64_t m = first_row + r;
    if (m >= n_rows) return -1;
    return product < p.n_targets ? p.teacher_row(m, product) : m;
  }
  __device__ __forceinline__ int64_t first(int tile) const {
    return first_column + static_cast<int64_t>(tile) * kTileColumns;
  }
  __device__ __forceinline__ int64_t end() const { return end_column; }
  __device__ __forceinline__ int tiles() const {
    return static_cast<int>(divide_up(end_column - first_column, kTileColumns));
  }
  // The row potential of a target in base 2; -inf for rows that count for nothing.
  __device__ __forceinline__ float offset(int target, int r) const {
    if (first_row + r >= n_rows) return -kInfinity;
    return p.row_potential(head, held_row(target, r)) * kLog2E;
  }
};

// What the kernels look up for each column and row of a tile.
struct LossTables {
  float2 teacher[kTileColumns];  // scale u and potential, in base 2
  float2 student[kTileColumns];  // scale u and a number of the kernel's
  float offset[kTileRows];       // potential of the teacher row
};

// Targets q and student products of one tile after the other.
template <class T, class Form>
class LossTiles {
 public:
  using Tile = typename Form::Tile;

  __device__ __forceinline__ LossTiles(const TilePlan& plan, const LossProducts& products)
      : products_(products), pipeline_(plan, products, products.tiles()) {}

  __device__ __forceinline__ LossTables& tables() const {
    return *static_cast<LossTables*>(pipeline_.own_memory());
  }
  __device__ __forceinline__ void* more_memory() const { return &tables() + 1; }

  // q = sum_p exp(z/T + a + b) over the teacher rows that the student rows meet, 0 for columns and
  // student rows that do not exist; `tile` = <x, v> of the student. `second` is the kernel's number
  // of the thread's column for the table of the student.
  template <class Second>
  __device__ __forceinline__ void next(Tile& q, Tile& tile, int t, const Second& second) {
    const LossParameters& p = products_.p;
    const bool first_half = threadIdx.x < kTileColumns;
    float2 teacher{}, student{};
    float offset = 0.0f;
    if (first_half) {
      load_column(teacher, student, products_.first(t) + threadIdx.x, second);
    } else if (t == 0 || p.n_targets > 1) {
      offset = products_.offset(0, threadIdx.x - kTileColumns);
    }
    pipeline_.multiply(q, 0);
    pipeline_.finish(q);
    if (first_half) {
      tables().teacher[threadIdx.x] = teacher;
      tables().student[threadIdx.x] = student;
    } else if (t == 0 || p.n_targets > 1) {
      tables().offset[threadIdx.x - kTileColumns] = offset;
    }
    if (p.n_targets > 1) add_targets(q, tile);
    pipeline_.multiply_and_finish(tile, p.n_targets, [&](int part) {
      if (p.n_targets > 1) return;
      weigh(q, part);
    });
  }

 private:
  static_assert(2 * kTileColumns == kThreads && kTileRows == kTileColumns);

  template <class Second>
  __device__ __forceinline__ void load_column(float2& teacher, float2& student, int64_t k,
                                              const Second& second) const {
    const StreamedLoss& p = products_.p;
    const int h = products_.head;
    const bool exists = k < products_.end();
    const float scale = exists ? scale_at(p.student.scale[h], k) : 0.0f;
    const float teacher_scale = exists ? scale_at(p.teacher.scale[h], k) : 0.0f;
    const float potential = exists ? p.prototype[p.scores.head[h].first_column + k] : -kInfinity;
    teacher = make_float2(times(teacher_scale, p.teacher_unit), potential * kLog2E);
    student = make_float2(times(scale, p.student_unit), second(scale, exists));
  }

  // Products to targets, in one of kParts parts.
  __device__ __forceinline__ void weigh(Tile& q, int part) const {
    constexpr int kColumns = Tile::kColumns / kParts;
#pragma unroll
    for (int i = 0; i < kColumns; i += 2) {
      const int c = part * kColumns + i;
      const ColumnPair pair(tables().teacher, Tile::column(c));
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
        const float offset = tables().offset[Tile::row(r)];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = q.at(r, c + j);
          x = exp2_fast(fmaf(x, pair.first(j), pair.second(j)) + offset);
        }
      }
    }
  }

  __device__ __forceinline__ void weigh(Tile& q) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) weigh(q, part);
  }

  // The other targets, which have nothing to overlap with.
  __device__ __forceinline__ void add_targets(Tile& q, Tile& tile) {
    block_barrier();
    weigh(q);
#pragma unroll 1
    for (int target = 1; target < products_.p.n_targets; ++target) {
      float offset = 0.0f;
      if (threadIdx.x < kTileRows) offset = products_.offset(target, threadIdx.x);
      pipeline_.multiply(tile, target);
      if (threadIdx.x < kTileRows) tables().offset[threadIdx.x] = offset;
      block_barrier();
      pipeline_.finish(tile);
      weigh(tile);
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < Tile::kColumns; ++c) q.at(r, c) += tile.at(r, c);
      }
    }
  }

  const LossProducts& products_;
  TilePipeline<T, Form, LossProducts> pipeline_;
};

// Where a column that does not exist stands in a log-sum-exp of base 2: nowhere, and yet 0 when it
// is multiplied by 0.
constexpr float kNowhere = -1e30f;

// partial[m, slice] = maximum and total of the log-sum-exp of s/t, and sum_k q s, over the slice
// blockIdx.y for the rows of tile blockIdx.x.
template <class T, class Form>
__global__ void __launch_bounds__(kThreads, 1)
    streamed_forward_kernel(const __grid_constant__ StreamedLoss p,
                            const __grid_constant__ TilePlan plan, float student_temperature,
                            float4* partial) {
  if constexpr (Form::kCompiled) {
    using Tile = typename Form::Tile;
    const Slice slice = find_slice(p.scores, blockIdx.y);
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
    const LossProducts products{p,           slice.head,
                                first_row,   p.scores.n_rows,
                                slice.begin, slice.begin + smaller(slice.columns, kSliceColumns)};
    LossTiles<T, Form> tiles(plan, products);
    RowSum sums[Tile::kRows];
    for (int t = 0; t < products.tiles(); ++t) {
      Tile q, tile;
      tiles.next(q, tile, t, [](float, bool exists) { return exists ? 0.0f : kNowhere; });
#pragma unroll
      for (int c = 0; c < Tile::kColumns; c += 2) {
        const ColumnPair pair(tiles.tables().student, Tile::column(c));
#pragma unroll
        for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = tile.at(r, c + i);
            s = fmaf(s, pair.first(i), pair.second(i));
            sums[r].agreement = fmaf(q.at(r, c + i), s, sums[r].agreement);
          }
        }
      }
      add_powers(sums, tile);
    }
    merge_row_sums<Tile>(
        sums, static_cast<float4*>(tiles.more_memory()), [&](int r, const RowSum& sum) {
          const int64_t m = first_row + r;
          if (m >= p.scores.n_rows) return;
          partial[m * p.scores.n_slices + blockIdx.y] = make_float4(
              sum.maximum * kLn2, sum.total, sum.agreement * (student_temperature * kLn2), 0.0f);
        });
  }
}

// One of the steps of scatter_sums, over lanes that differ in `mask`, for the first 2 `half`
// values.
template <int mask, int half, int count>
__device__ __forceinline__ int scatter_step(float (&value)[count]) {
  const bool upper = (lane_index() & mask) != 0;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float other = shuffle_xor(upper ? value[i] : value[i + half], mask);
    value[i] = (upper ? value[i + half] : value[i]) + other;
  }
  return upper ? half : 0;
}

// Adds up the values of each column over the rows of a warp. Afterwards value[i], for i < count /
// 8, is the sum of the lane's column first + i, `first` being what is returned.
template <int count>
__device__ __forceinline__ int scatter_sums(float (&value)[count]) {
  int first = scatter_step<16, count / 2>(value);
  first += scatter_step<8, count / 4>(value);
  return first + scatter_step<4, count / 8>(value);
}

// Columns of one head that a launch takes, tiles_of_block tiles in each block.
struct ColumnRange {
  int head;
  int tiles_of_block;
  int64_t first;
  int64_t columns;
};

// Where the gradient of a launch goes: out[m, k], rows `stride` elements apart, and
// scale_partial[row tile, k]; k counts from the first column of the range.
template <class T>
struct GradientOutputs {
  T* out;
  int64_t stride;
  bool vectors;
  float* scale_partial;
};

// What a row of the student contributes: grad w/t, and the power of 2 that makes P softmax(s/t) of
// 2^(s/t).
__device__ __forceinline__ float2 gradient_row(const StreamedLoss& p, int head, int64_t m,
                                               const float* grad_loss, const float* lse) {
  if (m >= p.scores.n_rows) return make_float2(0.0f, 0.0f);
  const float shift = log2f(static_cast<float>(p.n_targets)) - lse[m] * kLog2E;
  return make_float2(grad_loss[head] * p.weights[m] * p.student_scale.high, shift);
}

// Of a tile of <x, v>: words[r][..] = ds scale, rounded, and sums += ds <x, v> over the rows, with
// ds = grad w/t (P softmax(s/t) - q), for eight of the lane's columns from c on.
template <class T, class Tile>
__device__ __forceinline__ void gradient_part(uint32_t (&words)[Tile::kRows][4],
                                              float (&sums)[Tile::kColumns], Tile& q, Tile& tile,
                                              int c, const float2* student, const float2* rows) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int column = c + 2 * i;
    const ColumnPair pair(student, Tile::column(column));
    sums[column] = sums[column + 1] = 0.0f;
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      const float2 row = rows[Tile::row(r)];
      float ds[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float product = tile.at(r, column + j);
        const float softmax = exp2_fast(fmaf(product, pair.first(j), row.y));
        ds[j] = row.x * (softmax - q.at(r, column + j));
        sums[column + j] = fmaf(ds[j], product, sums[column + j]);
      }
      words[r][i] = make_pair<T>(ds[0] * pair.second(0), ds[1] * pair.second(1));
    }
  }
}

// Writes the sums of the tile's columns over all its rows to `to`, of which `left` columns exist.
// `shared` holds an entry for each column and row of warps.
template <class Tile>
__device__ __forceinline__ void store_column_sums(float (&sums)[Tile::kColumns], float* shared,
                                                  float* to, int64_t left) {
  const int first = scatter_sums(sums);
#pragma unroll
  for (int i = 0; i < Tile::kColumns / 8; ++i) {
    shared[Tile::warp_down() * kTileColumns + Tile::column(first + i)] = sums[i];
  }
  block_barrier();
  if (threadIdx.x >= kTileColumns || threadIdx.x >= left) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < Tile::kWarpsDown; ++w) sum += shared[w * kTileColumns + threadIdx.x];
  to[threadIdx.x] = sum;
}

// Gradient of the products <x, v> of some columns of one head: out = ds scale, and scale_partial =
// sum_m ds <x, v> over the rows of tile blockIdx.x. blockIdx.y counts blocks of columns.
template <class T, class Form>
__global__ void __launch_bounds__(kThreads, 1)
    streamed_gradient_kernel(const __grid_constant__ StreamedLoss p,
                             const __grid_constant__ TilePlan plan, const ColumnRange range,
                             const float* grad_loss, const float* lse,
                             const GradientOutputs<T> outputs) {
  if constexpr (Form::kCompiled) {
    using Tile = typename Form::Tile;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
    const int64_t of_block = static_cast<int64_t>(range.tiles_of_block) * kTileColumns;
    const int64_t begin = blockIdx.y * of_block, end = smaller(begin + of_block, range.columns);
    const LossProducts products{
        p, range.head, first_row, p.scores.n_rows, range.first + begin, range.first + end};
    LossTiles<T, Form> tiles(plan, products);
    auto* rows = static_cast<float2*>(tiles.more_memory());
    auto* shared = reinterpret_cast<float*>(rows + kTileRows);
    if (threadIdx.x < kTileRows) {
      rows[threadIdx.x] = gradient_row(p, range.head, first_row + threadIdx.x, grad_loss, lse);
    }
    for (int t = 0; t < products.tiles(); ++t) {
      Tile q, tile;
      tiles.next(q, tile, t, [](float scale, bool) { return scale; });
      float sums[Tile::kColumns];
      const int64_t first = begin + static_cast<int64_t>(t) * kTileColumns;
      const StoredTile<T, Tile> stored(outputs.out + first_row * outputs.stride + first,
                                       outputs.stride, outputs.vectors, p.scores.n_rows - first_row,
                                       range.columns - first);
#pragma unroll
      for (int c = 0; c < Tile::kColumns; c += 8) {
        uint32_t words[Tile::kRows][4];
        gradient_part<T>(words, sums, q, tile, c, tiles.tables().student, rows);
        stored.store(words, c);
      }
      store_column_sums<Tile>(sums, shared,
                              outputs.scale_partial + blockIdx.x * range.columns + first,
                              range.columns - first);
    }
  }
}

}  // namespace franca::cuda
