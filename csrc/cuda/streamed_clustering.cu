#include "franca/cuda/streamed_clustering.hpp"

#include "cuda/merges.cuh"
#include "cuda/score_launch.cuh"

namespace franca::cuda {
namespace {

int64_t column_tiles(const Heads& scores) {
  return scores.n_slices * kTilesPerSlice;
}

// Chunks of whole tiles of rows.
Chunks tile_chunks(const Heads& scores, int64_t n_rows) {
  const Chunks chunks = share_rows(n_rows, column_tiles(scores), multiprocessors());
  const int64_t rows = row_tiles(chunks.rows) * kTileRows;
  return {rows, n_rows > 0 ? divide_up(n_rows, rows) : 1};
}

// One product for each tile, in blocks of which two share a multiprocessor.
template <class Form>
PlannedTiles plan_scores(const ScoreFactors& factors, const Heads& scores) {
  const int steps = most_steps(factors, scores);
  return plan_tiles<Form>({1, steps, steps, kTileColumns * sizeof(float2), 2});
}

// The largest power of 2, up to a slice, that leaves several blocks for each multiprocessor.
int tiles_to_store(int64_t n_rows, const Heads& scores) {
  constexpr int64_t kBlocksPerMultiprocessor = 4;
  int tiles = kTilesPerSlice;
  while (tiles > 1 && row_tiles(n_rows) * column_tiles(scores) / tiles <
                          kBlocksPerMultiprocessor * multiprocessors()) {
    tiles /= 2;
  }
  return tiles;
}

struct RowStepMemory {
  float2* rows;
  float* mass;
};

RowStepMemory row_step_memory(Workspace& memory, const Heads& scores, int64_t n_valid) {
  auto* rows = memory.take<float2>(n_valid * scores.n_slices);
  return {rows, memory.take<float>(tile_chunks(scores, n_valid).count * scores.n_columns)};
}

}  // namespace

bool offers_warpgroups() {
  return has_warpgroup_products(scores_kernel<BFloat16, ByWarpgroups>);
}

void prototype_scores(const ScoreSide& side, const Head* out, void* stream) {
  const Heads scores = scores_of(side, out);
  const ScoreFactors factors = factors_of(side);
  if (side.n_rows == 0) return;
  const int tiles = tiles_to_store(side.n_rows, scores);
  with_kernel_types(side, [&](auto* type, auto form) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Form = decltype(form);
    const PlannedTiles planned = plan_scores<Form>(factors, scores);
    // Row tiles first, see streamed_rows_kernel.
    launch(scores_kernel<T, Form>,
           {grid_of(row_tiles(side.n_rows), column_tiles(scores) / tiles), kThreads, planned.bytes},
           stream, factors, scores, planned.plan, tiles);
  });
}

std::size_t streamed_column_workspace(const ScoreSide& side, int64_t n_valid) {
  const Heads scores = scores_of(side);
  Workspace memory(nullptr, 0);
  memory.take<float>(2 * tile_chunks(scores, n_valid).count * scores.n_columns);
  return memory.used();
}

void streamed_column_logsumexp(const ScoreSide& side, double temperature, int64_t n_valid,
                               float* maximum, float* total, void* workspace,
                               std::size_t workspace_bytes, void* stream) {
  check_valid_rows(n_valid, side.n_rows);
  const Heads scores = scores_of(side);
  const ScoreFactors factors = factors_of(side);
  const InverseTemperature unit = base2(temperature);
  const Chunks chunks = tile_chunks(scores, n_valid);
  Workspace memory(workspace, workspace_bytes);
  float* chunk_maximum = memory.take<float>(2 * chunks.count * scores.n_columns);
  float* chunk_total = chunk_maximum + chunks.count * scores.n_columns;
  const bool direct = chunks.count == 1;
  with_kernel_types(side, [&](auto* type, auto form) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Form = decltype(form);
    const PlannedTiles planned = plan_scores<Form>(factors, scores);
    launch(streamed_columns_kernel<T, Form, false>,
           {grid_of(column_tiles(scores), chunks.count), kThreads, planned.bytes}, stream, factors,
           scores, planned.plan, unit, n_valid, chunks.rows, static_cast<const float*>(nullptr),
           static_cast<const float*>(nullptr), direct ? maximum : chunk_maximum,
           direct ? total : chunk_total);
  });
  if (direct) return;
  merge_columns(scores.n_columns, chunks.count, chunk_maximum, chunk_total,
                {maximum, total, nullptr}, stream);
}

std::size_t streamed_row_step_workspace(const ScoreSide& side, int64_t n_valid) {
  Workspace memory(nullptr, 0);
  row_step_memory(memory, scores_of(side), n_valid);
  return memory.used();
}

void streamed_row_step(const ScoreSide& side, double temperature, const float* prototype,
                       int64_t n_valid, float* row, float* mass, void* workspace,
                       std::size_t workspace_bytes, void* stream) {
  check_valid_rows(n_valid, side.n_rows);
  const Heads scores = scores_of(side);
  const ScoreFactors factors = factors_of(side);
  const InverseTemperature unit = base2(temperature);
  Workspace memory(workspace, workspace_bytes);
  const RowStepMemory partial = row_step_memory(memory, scores, n_valid);
  const Chunks chunks = tile_chunks(scores, n_valid);
  with_kernel_types(side, [&](auto* type, auto form) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Form = decltype(form);
    const PlannedTiles planned = plan_scores<Form>(factors, scores);
    if (n_valid > 0) {
      launch(streamed_rows_kernel<T, Form>,
             {grid_of(row_tiles(n_valid), scores.n_slices), kThreads, planned.bytes}, stream,
             factors, scores, planned.plan, unit, n_valid, prototype, partial.rows);
    }
    merge_rows(scores, n_valid, partial.rows, {row, nullptr, nullptr}, stream);
    if (mass == nullptr) return;
    launch(streamed_columns_kernel<T, Form, true>,
           {grid_of(column_tiles(scores), chunks.count), kThreads, planned.bytes}, stream, factors,
           scores, planned.plan, unit, n_valid, chunks.rows, prototype,
           static_cast<const float*>(row), static_cast<float*>(nullptr),
           chunks.count > 1 ? partial.mass : mass);
  });
  if (mass == nullptr || chunks.count == 1) return;
  merge_mass(scores, equal_parts(scores, chunks.count), partial.mass, {mass, nullptr}, stream);
}

}  // namespace franca::cuda
