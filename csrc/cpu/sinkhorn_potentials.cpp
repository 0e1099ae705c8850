// All iterations of Sinkhorn-Knopp in one call; see sinkhorn_iteration.hpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "cpu/parallel.hpp"
#include "cpu/row_sums.hpp"
#include "cpu/tile_kernels.hpp"
#include "cpu/tiles.hpp"
#include "franca/sinkhorn.hpp"

namespace franca::cpu {
namespace {

// Beyond so many rows the terms of a strip no longer stay in the second cache.
constexpr int64_t kMostRows = 1024;

int64_t count_tiles(const RaggedLogits& logits) {
  int64_t n = 0;
  for (int64_t head = 0; head < logits.n_heads; ++head) {
    n += (logits.heads[head].columns + kTileColumns - 1) / kTileColumns;
  }
  return n;
}

int threads_for(const RaggedLogits& logits, int64_t n_valid, int threads) {
  return useful_threads(threads, n_valid * total_columns(logits));
}

}  // namespace

std::size_t potentials_workspace(const RaggedLogits& logits, int64_t n_valid, int threads) {
  if (n_valid < 1 || n_valid > kMostRows) return 0;
  const int64_t scratch = threads_for(logits, n_valid, threads) * kBalanceScratch;
  return static_cast<std::size_t>(n_valid * (scratch + count_tiles(logits))) * sizeof(float);
}

bool potentials(const RaggedLogits& logits, double temperature, int64_t n_iterations,
                int64_t n_valid, float* prototype, float* row, void* workspace,
                std::size_t workspace_bytes, int threads) {
  check_logits(logits, "logits");
  check_temperature(temperature, "temperature");
  check_valid_rows(logits, n_valid);
  if (n_iterations < 1) throw std::invalid_argument("n_iterations: at least 1 is needed");
  check_pointer(prototype, total_columns(logits), "prototype");
  check_pointer(row, logits.n_heads * logits.n_rows, "row");
  check_workspace(workspace_bytes, potentials_workspace(logits, n_valid, threads), workspace);
  if (n_valid < 1 || n_valid > kMostRows) return false;

  const Tiling tiling(logits);
  const TileKernels& kernels = tile_kernels();
  const Scale scale(temperature);
  const int dtype = static_cast<int>(logits.dtype);
  threads = threads_for(logits, n_valid, threads);
  float* scratch = static_cast<float*>(workspace);
  float* row_sums = scratch + threads * n_valid * kBalanceScratch;
  for (int64_t iteration = 0; iteration < n_iterations; ++iteration) {
    run_on_workers(static_cast<int64_t>(tiling.tiles.size()), threads, [&](int64_t i, int worker) {
      const Tile& tile = tiling.tiles[i];
      kernels.balance[dtype](tile_row(logits, tile, 0), logits.heads[tile.head].row_stride, n_valid,
                             tile.columns, scale,
                             iteration == 0 ? nullptr : row + tile.head * logits.n_rows,
                             prototype + tile.offset, scratch + worker * n_valid * kBalanceScratch,
                             row_sums + i * n_valid);
    });
    for (int64_t head = 0; head < logits.n_heads; ++head) {
      for (int64_t n = 0; n < n_valid; ++n) {
        double sum = 0.0;
        for (int64_t i = tiling.first_of_head[head]; i < tiling.first_of_head[head + 1]; ++i) {
          sum += row_sums[i * n_valid + n];
        }
        if (needs_shift(static_cast<float>(sum))) return false;
        float& b = row[head * logits.n_rows + n];
        b = static_cast<float>((iteration == 0 ? 0.0 : b) - std::log(sum));
      }
    }
  }
  for (int64_t head = 0; head < logits.n_heads; ++head) {
    float* of_head = row + head * logits.n_rows;
    std::fill(of_head + n_valid, of_head + logits.n_rows, -std::numeric_limits<float>::infinity());
  }
  return true;
}

}  // namespace franca::cpu
