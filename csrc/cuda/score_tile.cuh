// Tiles of scores as a block forms them one after the other, from copies that run ahead of the
// products, over the ends of products and tiles.
//
// A block holds 128 rows of a factor, for instance of the features, and 128 rows of the other pass
// by for each tile. There may be several products for a tile, each with factors of its own. What is
// held stays in shared memory where there is room; elsewhere it passes by again for each tile.
#pragma once

#include "cuda/primitives/block.cuh"
#include "cuda/score_forms.cuh"

namespace franca::cuda {

constexpr int kTilesPerSlice = kSliceColumns / kTileColumns;
// Rows of a step that all threads copy at a time, a pack each.
constexpr int kRowsAtATime = kThreads / kPacksPerRow;
// Parts of the work that is done while a product is formed.
constexpr int kParts = 4;
// Steps that are copied ahead of the one in use, at most.
constexpr int kMostAhead = 3;

// How shared memory is used. The steps that are kept come first, then the stages that copies pass
// through, then what a kernel wants for itself.
struct TilePlan {
  int kept;         // products, from the first on, whose held rows stay
  int kept_steps;   // of all of them
  int stages;       // at least 2, one more where products go on while the threads are ahead
  int stage_steps;  // 1; 2 where held rows pass by as well, behind the others
};

// At least one, of zeros where there are no columns.
__host__ __device__ __forceinline__ int steps_of(const Matrix& matrix) {
  return matrix.columns > kDepth ? static_cast<int>(divide_up(matrix.columns, kDepth)) : 1;
}

// Starts copying 128 rows, all of which exist, from the thread's first pack on. `gap` bytes lie
// between the rows that a thread copies.
__device__ __forceinline__ void fetch_whole_step(uint4* to, const char* from, int64_t gap) {
  uint4* target = to + place(threadIdx.x / kPacksPerRow, threadIdx.x % kPacksPerRow);
#pragma unroll
  for (int i = 0; i < kTileRows / kRowsAtATime; ++i) {
    copy_async(target + i * kRowsAtATime * kPacksPerRow, from);
    from += gap;
  }
}

// Starts copying one pack of row `n`, from `element` on; what does not exist becomes 0.
template <class T>
__device__ __forceinline__ void fetch_pack(uint4* to, const Matrix& matrix, int64_t n,
                                           int64_t element) {
  const T* from = row_of<T>(matrix, n < 0 ? 0 : n) + element;
  const int64_t left = n < 0 ? 0 : matrix.columns - element;
  if (matrix.vectors && (left >= kPack<T> || left <= 0)) {
    copy_async(to, left > 0 ? static_cast<const void*>(from) : matrix.data,
               left > 0 ? kPackBytes : 0);
  } else {
    store_shared(to, load_pack(from, left, false));
  }
}

// Starts copying a step of 128 rows; row_index gives the row of the matrix for a row of the tile,
// negative for none.
template <class T, class RowIndex>
__device__ __forceinline__ void fetch_step(uint4* to, const Matrix& matrix, int step,
                                           const RowIndex& row_index) {
  constexpr int kTimes = kTileRows / kRowsAtATime;
  const int row = threadIdx.x / kPacksPerRow, pack = threadIdx.x % kPacksPerRow;
  const int64_t element = static_cast<int64_t>(step) * kDepth + pack * kPack<T>;
  uint4* target = to + place(row, pack);
  int64_t n[kTimes];  // looked up all at once: they may come from global memory
#pragma unroll
  for (int i = 0; i < kTimes; ++i) n[i] = row_index(row + i * kRowsAtATime);
#pragma unroll 1
  for (int i = 0; i < kTimes; ++i) {
    fetch_pack<T>(target, matrix, n[0], element);
    target += kRowsAtATime * kPacksPerRow;
#pragma unroll
    for (int j = 1; j < kTimes; ++j) n[j - 1] = n[j];
  }
}

// `Products` says what is multiplied:
//   count()               products for each tile
//   held(p), passing(p)   the factors of product p
//   held_row(p, r)        row of held(p) for row r of the tile, negative for none
//   first(tile), end()    first row of passing(p) in a tile, and the row behind the last of all
// Every thread of the block must take part in everything.
template <class T, class Form, class Products>
class TilePipeline {
 public:
  using Tile = typename Form::Tile;

  __device__ __forceinline__ TilePipeline(const TilePlan& plan, const Products& products,
                                          int n_tiles)
      : plan_(plan), products_(products), n_tiles_(n_tiles) {
    if (n_tiles_ > 0) open_product();
    for (int i = 0; i < steps_ahead(); ++i) fetch();
  }

  // Replaces `tile` by product p of the next tile; products are to be asked for in their order. It
  // is there after finish().
  __device__ __forceinline__ void multiply(Tile& tile, int p) {
    const int n_steps = steps_of(products_.held(p));
    tile.clear();
    for (int step = 0; step < n_steps; ++step) advance(tile, p, step);
  }

  // The same, finished; in between, behind a barrier, calls during(0) to during(kParts - 1).
  template <class During>
  __device__ __forceinline__ void multiply_and_finish(Tile& tile, int p, const During& during) {
    const int n_steps = steps_of(products_.held(p));
    tile.clear();
    for (int step = 0; step < n_steps; ++step) {
      advance(tile, p, step);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        if (part == step) during(part);
      }
    }
    finish(tile);
#pragma unroll
    for (int part = 1; part < kParts; ++part) {
      if (part >= n_steps) during(part);
    }
  }

  __device__ __forceinline__ void finish(Tile& tile) { Form::wait(tile); }

  // Memory for the kernel's own use.
  __device__ __forceinline__ void* own_memory() const {
    return memory() + (plan_.kept_steps + plan_.stages * plan_.stage_steps) * kStepPacks;
  }

  // Memory that nobody uses any more when the last product is finished, and a barrier.
  __device__ __forceinline__ void* free_memory() const { return memory(); }

 private:
  __device__ __forceinline__ static uint4* memory() {
    return reinterpret_cast<uint4*>(shared_memory());
  }
  __device__ __forceinline__ uint4* stage(int number) const {
    return memory() + (plan_.kept_steps + number * plan_.stage_steps) * kStepPacks;
  }
  __device__ __forceinline__ int next(int number) const {
    return number + 1 < plan_.stages ? number + 1 : 0;
  }
  __device__ __forceinline__ uint4* held_place(int p, int step, uint4* stage) const {
    // All products but the last have as many steps.
    return p < plan_.kept ? memory() + (p * steps_of(products_.held(0)) + step) * kStepPacks
                          : stage + kStepPacks;
  }
  __device__ __forceinline__ int steps_ahead() const { return plan_.stages - 1 - Form::kInFlight; }

  __device__ __forceinline__ void advance(Tile& tile, int p, int step) {
    wait_for_copies(steps_ahead() - 1);
    Form::publish();
    // From here on all threads see the step, and are done with all before those in flight.
    block_barrier();
    uint4* passing = stage(used_);
    Form::template multiply<T>(tile, held_place(p, step, passing), passing);
    fetch();
    Form::wait_for_step();
    used_ = next(used_);
  }

  // Starts copying the step that is to come next, into the stage that was left longest ago.
  __device__ __forceinline__ void fetch() {
    if (tile_ < n_tiles_) {
      uint4* to = stage(fetched_);
      if (step_ < whole_steps_) {
        fetch_whole_step(to, from_, gap_);
        from_ += kDepth * sizeof(T);
      } else {
        const int64_t first = products_.first(tile_), end = products_.end();
        fetch_step<T>(to, products_.passing(product_), step_, [&](int r) {
          return first + r < end ? first + r : static_cast<int64_t>(-1);
        });
      }
      if (tile_ == 0 || product_ >= plan_.kept) {
        fetch_step<T>(held_place(product_, step_, to), products_.held(product_), step_,
                      [&](int r) { return products_.held_row(product_, r); });
      }
      if (++step_ == n_steps_) close_product();
    }
    fetched_ = next(fetched_);
    commit_copies();
  }

  __device__ __forceinline__ void open_product() {
    const Matrix& matrix = products_.passing(product_);
    const int64_t first = products_.first(tile_);
    n_steps_ = steps_of(matrix);
    const bool whole = matrix.vectors && first + kTileColumns <= products_.end();
    whole_steps_ = whole ? static_cast<int>(matrix.columns / kDepth) : 0;
    gap_ = matrix.row_bytes * kRowsAtATime;
    from_ = row_of<char>(matrix, first + threadIdx.x / kPacksPerRow) +
            threadIdx.x % kPacksPerRow * kPackBytes;
  }

  __device__ __forceinline__ void close_product() {
    step_ = 0;
    if (++product_ == products_.count()) {
      product_ = 0;
      ++tile_;
    }
    if (tile_ < n_tiles_) open_product();
  }

  const TilePlan& plan_;
  const Products& products_;
  const int n_tiles_;
  int used_ = 0, fetched_ = 0;  // stages
  // What is copied next.
  int tile_ = 0, product_ = 0, step_ = 0;
  int n_steps_ = 0, whole_steps_ = 0;
  const char* from_ = nullptr;
  int64_t gap_ = 0;
};

}  // namespace franca::cuda
