#include "franca/sinkhorn.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/row_sums.hpp"
#include "cpu/tile_kernels.hpp"
#include "cpu/tiles.hpp"

namespace franca::cpu {
namespace {

// Rows whose terms are summed before they join the total: a float sum of hundreds of terms loses
// digits. Of the first rows the maximum is needed before the sum, so those are few.
constexpr int64_t kColumnBlockRows = 32;
constexpr int64_t kFirstBlockRows = 4;

bool all_below(const float* sum, int64_t n, float bound) {
  bool below = true;
  for (int64_t k = 0; k < n; ++k) below &= sum[k] <= bound;
  return below;
}

// log-sum-exp over the rows of one tile. The terms of a block of rows are taken relative to the
// maximum of the rows before, so that a row is read once; where that overflows, a second time.
void column_tile(const RaggedLogits& logits, const Tile& tile, Scale scale, int64_t n_valid,
                 const TileKernels& kernels, float* maximum, float* total) {
  const int dtype = static_cast<int>(logits.dtype);
  const int64_t columns = tile.columns;
  float before[kTileColumns], shift[kTileColumns], sum[kTileColumns];
  const auto add_rows = [&](int64_t begin, int64_t end) {
    std::copy_n(maximum, columns, shift);
    std::fill_n(sum, columns, 0.0f);
    for (int64_t n = begin; n < end; ++n) {
      const void* next = tile_row(logits, tile, std::min(n + 2, n_valid - 1));
      kernels.column_exp_sum[dtype](tile_row(logits, tile, n), next, columns, scale, shift, maximum,
                                    sum);
    }
  };
  std::fill_n(maximum, columns, -std::numeric_limits<float>::infinity());
  std::fill_n(total, columns, 0.0f);
  for (int64_t begin = 0, end = 0; begin < n_valid; begin = end) {
    end = std::min(begin + (begin == 0 ? kFirstBlockRows : kColumnBlockRows), n_valid);
    std::copy_n(maximum, columns, before);
    for (int64_t n = begin; begin == 0 && n < end; ++n) {
      kernels.column_maximum[dtype](tile_row(logits, tile, n), columns, scale, maximum);
    }
    add_rows(begin, end);
    if (!all_below(sum, columns, 0x1p100f)) add_rows(begin, end);  // now with their own maximum
    kernels.merge_totals(before, shift, maximum, sum, columns, total);
  }
}

// Rows [begin, end) of one head.
struct Task {
  int64_t head;
  int64_t begin;
  int64_t end;
  int64_t chunk;
};

// Cuts the rows [0, n_rows) of each head into the same number of chunks. The heads with most
// columns come first, so that what is left at the end is small; they are the last ones by custom.
std::vector<Task> cut_into_tasks(const RaggedLogits& logits, int64_t n_rows, int64_t n_chunks) {
  std::vector<Task> tasks;
  for (int64_t head = logits.n_heads - 1; head >= 0; --head) {
    for (int64_t i = 0; i < n_chunks; ++i) {
      const int64_t begin = n_rows * i / n_chunks, end = n_rows * (i + 1) / n_chunks;
      if (begin < end) tasks.push_back({head, begin, end, i});
    }
  }
  return tasks;
}

// Chunks of rows that have masses of their own. Their number depends on that of the rows only, so
// that the order of sums does not depend on the number of threads. The first chunk is summed where
// the result goes; the others take no more than 1/32 of the logits as soon as there are 64 rows. A
// chunk is short because a float sum of hundreds of terms loses digits.
int64_t mass_chunks(int64_t n_valid) {
  return n_valid < 16 ? 1 : std::max<int64_t>(2, n_valid / 32);
}

// Rows are read together as far as the second look finds them in cache: potentials and masses are
// then fetched once for all of them, and memory serves several streams at a time.
constexpr int64_t kCachedBytes = 1 << 20;

// The pass over the rows of one task: row potentials and, unless mass is null, the masses.
void row_task(const RaggedLogits& logits, const Tiling& tiling, const Task& task, Scale scale,
              const float* prototype, const TileKernels& kernels, float* row, float* mass) {
  constexpr int64_t kMaxRows = 32;
  RowSum sums[kMaxRows];
  Normalizer normalizers[kMaxRows];
  const int dtype = static_cast<int>(logits.dtype);
  const Tile* first = tiling.begin(task.head);
  const Tile* last = tiling.end(task.head);
  const int64_t row_bytes = logits.heads[task.head].columns * size_of(logits.dtype);
  const int64_t block = std::clamp<int64_t>(kCachedBytes / row_bytes, 1, kMaxRows);
  for (int64_t begin = task.begin; begin < task.end; begin += block) {
    const int64_t end = std::min(begin + block, task.end);
    std::fill(sums, sums + (end - begin), RowSum());
    for (const Tile* tile = first; tile != last; ++tile) {
      for (int64_t n = begin; n < end; ++n) {
        sums[n - begin].add(sum_of_tile(logits, *tile, n, scale, prototype, kernels));
      }
    }
    for (int64_t n = begin; n < end; ++n) {
      row[task.head * logits.n_rows + n] = static_cast<float>(-sums[n - begin].logsumexp());
      normalizers[n - begin] = Normalizer(sums[n - begin]);
    }
    if (mass == nullptr) continue;
    for (const Tile* tile = first; tile != last; ++tile) {
      for (int64_t n = begin; n < end; ++n) {
        const Normalizer& normalizer = normalizers[n - begin];
        kernels.add_exp[dtype](tile_row(logits, *tile, n), tile->columns, scale,
                               prototype + tile->offset, normalizer.shift, normalizer.factor,
                               mass + tile->offset);
      }
    }
  }
}

// Assignments of this size would only push other things out of the caches. Past these they are
// written without being read first.
constexpr int64_t kStreamedBytes = 8 << 20;

// One row. Its terms [columns] stay in cache until their sum is known.
void assign_row(const RaggedLogits& logits, const Tiling& tiling, int64_t head, int64_t n,
                Scale scale, const float* prototype, const TileKernels& kernels, float* terms,
                float* out) {
  const int dtype = static_cast<int>(logits.dtype);
  const Tile* first = tiling.begin(head);
  const Tile* last = tiling.end(head);
  const auto write_terms = [&](float shift) {
    RowSum sum;
    for (const Tile* tile = first; tile != last; ++tile) {
      const void* x = tile_row(logits, *tile, n);
      sum.add({shift, kernels.write_exp[dtype](x, tile->columns, scale, prototype + tile->offset,
                                               shift, terms + tile->begin)});
    }
    return sum;
  };
  RowSum sum = write_terms(0.0f);
  if (needs_shift(static_cast<float>(sum.sum))) {
    float largest = -std::numeric_limits<float>::infinity();
    for (const Tile* tile = first; tile != last; ++tile) {
      const void* x = tile_row(logits, *tile, n);
      largest = std::max(largest,
                         kernels.maximum[dtype](x, tile->columns, scale, prototype + tile->offset));
    }
    sum = write_terms(safe_shift(largest));
  }
  const int64_t width = logits.heads[head].columns;
  kernels.multiply(terms, width, Normalizer(sum).factor, out, terms != out);
}

void assign_task(const RaggedLogits& logits, const Tiling& tiling, const Task& task, Scale scale,
                 const float* prototype, int64_t n_valid, const TileKernels& kernels, float* terms,
                 float* out) {
  const int64_t width = logits.heads[task.head].columns;
  const bool stream = logits.n_rows * width * static_cast<int64_t>(sizeof(float)) > kStreamedBytes;
  for (int64_t n = task.begin; n < task.end; ++n) {
    float* target = out + n * width;
    if (n < n_valid) {
      assign_row(logits, tiling, task.head, n, scale, prototype, kernels, stream ? terms : target,
                 target);
    } else {
      std::fill_n(target, width, 0.0f);
    }
  }
}

}  // namespace

void column_logsumexp(const RaggedLogits& logits, double temperature, int64_t n_valid,
                      float* maximum, float* total, int threads) {
  check_logits(logits, "logits");
  check_temperature(temperature, "temperature");
  check_valid_rows(logits, n_valid);
  const int64_t columns = total_columns(logits);
  check_pointer(maximum, columns, "maximum");
  check_pointer(total, columns, "total");

  threads = useful_threads(threads, n_valid * columns);
  const Tiling tiling(logits);
  const TileKernels& kernels = tile_kernels();
  const Scale scale(temperature);
  run_tasks(static_cast<int64_t>(tiling.tiles.size()), threads, [&](int64_t i) {
    const Tile& tile = tiling.tiles[i];
    column_tile(logits, tile, scale, n_valid, kernels, maximum + tile.offset, total + tile.offset);
  });
}

std::size_t row_step_workspace(int64_t total_columns, int64_t n_valid) {
  if (total_columns < 0 || n_valid < 0) throw std::invalid_argument("row_step: negative size");
  return static_cast<std::size_t>((mass_chunks(n_valid) - 1) * total_columns) * sizeof(float);
}

void row_step(const RaggedLogits& logits, double temperature, const float* prototype,
              int64_t n_valid, float* row, float* mass, void* workspace,
              std::size_t workspace_bytes, int threads) {
  check_logits(logits, "logits");
  check_temperature(temperature, "temperature");
  check_valid_rows(logits, n_valid);
  const int64_t columns = total_columns(logits);
  const int64_t n_chunks = mass != nullptr ? mass_chunks(n_valid) : std::min<int64_t>(n_valid, 64);
  check_pointer(prototype, columns, "prototype");
  check_pointer(row, logits.n_heads * logits.n_rows, "row");
  if (mass != nullptr) {
    check_workspace(workspace_bytes, row_step_workspace(columns, n_valid), workspace);
  }

  const Tiling tiling(logits);
  const TileKernels& kernels = tile_kernels();
  const Scale scale(temperature);
  float* other_masses = static_cast<float*>(workspace);
  threads = useful_threads(threads, n_valid * columns);
  const std::vector<Task> tasks = cut_into_tasks(logits, n_valid, n_chunks);
  run_tasks(static_cast<int64_t>(tasks.size()), threads, [&](int64_t i) {
    const Task& task = tasks[i];
    float* own = nullptr;
    if (mass != nullptr) {
      own = task.chunk == 0 ? mass : other_masses + (task.chunk - 1) * columns;
      const int64_t offset = tiling.begin(task.head)->offset;
      std::fill_n(own + offset, logits.heads[task.head].columns, 0.0f);
    }
    row_task(logits, tiling, task, scale, prototype, kernels, row, own);
  });
  for (int64_t head = 0; head < logits.n_heads; ++head) {
    float* of_head = row + head * logits.n_rows;
    std::fill(of_head + n_valid, of_head + logits.n_rows, -std::numeric_limits<float>::infinity());
  }
  if (mass == nullptr) return;
  if (n_valid == 0) std::fill_n(mass, columns, 0.0f);
  const auto add_chunks = [&](int64_t i) {
    const Tile& tile = tiling.tiles[i];
    double sum[kTileColumns];
    float* out = mass + tile.offset;
    std::copy_n(out, tile.columns, sum);
    for (int64_t chunk = 1; chunk < n_chunks; ++chunk) {
      const float* other = other_masses + (chunk - 1) * columns + tile.offset;
      for (int64_t k = 0; k < tile.columns; ++k) sum[k] += other[k];
    }
    std::copy_n(sum, tile.columns, out);
  };
  const int64_t n_tiles = n_chunks > 1 ? static_cast<int64_t>(tiling.tiles.size()) : 0;
  run_tasks(n_tiles, useful_threads(threads, n_chunks * columns), add_chunks);
}

void assignments(const RaggedLogits& logits, double temperature, const float* prototype,
                 int64_t n_valid, float* const* out, int threads) {
  check_logits(logits, "logits");
  check_temperature(temperature, "temperature");
  check_valid_rows(logits, n_valid);
  const int64_t columns = total_columns(logits);
  check_pointer(prototype, columns, "prototype");
  for (int64_t head = 0; head < logits.n_heads; ++head) {
    check_pointer(out[head], logits.n_rows, "assignments");
  }

  const Tiling tiling(logits);
  const TileKernels& kernels = tile_kernels();
  const Scale scale(temperature);
  threads = useful_threads(threads, logits.n_rows * columns);
  const int64_t n_chunks = threads == 1 ? 1 : std::min<int64_t>(logits.n_rows, 8 * threads);
  const std::vector<Task> tasks = cut_into_tasks(logits, logits.n_rows, n_chunks);
  int64_t widest = 0;
  for (int64_t head = 0; head < logits.n_heads; ++head) {
    widest = std::max(widest, logits.heads[head].columns);
  }
  const std::unique_ptr<float[]> terms(new float[static_cast<std::size_t>(threads * widest)]);
  run_on_workers(static_cast<int64_t>(tasks.size()), threads, [&](int64_t i, int worker) {
    assign_task(logits, tiling, tasks[i], scale, prototype, n_valid, kernels,
                terms.get() + worker * widest, out[tasks[i].head]);
  });
}

}  // namespace franca::cpu
