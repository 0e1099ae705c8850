#include "franca/cuda/streamed_clustering.hpp"

#include "cuda/merges.cuh"
#include "cuda/primitives/launch.cuh"
#include "cuda/streamed_loss.cuh"

namespace franca::cuda {
namespace {

template <class Body>
void with_factor_type(DType dtype, Body body) {
  if (dtype == DType::bfloat16) return body(static_cast<BFloat16*>(nullptr));
  if (dtype == DType::float16) return body(static_cast<Float16*>(nullptr));
  throw std::invalid_argument("matrix instructions read bfloat16 and float16");
}

ScoreFactors factors_of(const ScoreSide& side) {
  check_heads(side.n_heads);
  ScoreFactors factors{};
  for (int64_t h = 0; h < side.n_heads; ++h) {
    if (side.features[h].columns != side.prototypes[h].columns) {
      throw std::invalid_argument("features and prototypes differ in their columns");
    }
    factors.features[h] = make_matrix(side.features[h], side.dtype);
    factors.prototypes[h] = make_matrix(side.prototypes[h], side.dtype);
    factors.scale[h] = side.scales[h];
  }
  return factors;
}

// The scores as if they were stored: only their sizes count.
Heads scores_of(const ScoreSide& side, const Head* out = nullptr) {
  check_heads(side.n_heads);
  Head heads[kMaxHeads] = {};
  for (int64_t h = 0; h < side.n_heads; ++h) {
    heads[h] = out != nullptr ? out[h] : Head{nullptr, side.n_prototypes[h], side.n_prototypes[h]};
    if (heads[h].columns != side.n_prototypes[h]) throw std::invalid_argument("out: columns");
  }
  return make_heads({heads, side.n_heads, side.n_rows, side.dtype});
}

void check_rows(const ScoreSide& side, int64_t n_valid) {
  if (n_valid < 0 || n_valid > side.n_rows) {
    throw std::invalid_argument("n_valid " + std::to_string(n_valid) + "; accepted: 0 to " +
                                std::to_string(side.n_rows));
  }
}

// Chunks of whole tiles of rows.
Chunks tile_chunks(const Heads& scores, int64_t n_rows) {
  const Chunks chunks = share_rows(n_rows, scores.n_slices * kTilesPerSlice, multiprocessors());
  const int64_t rows = divide_up(chunks.rows, kTileRows) * kTileRows;
  return {rows, n_rows > 0 ? divide_up(n_rows, rows) : 1};
}

int64_t column_tiles(const Heads& scores) {
  return scores.n_slices * kTilesPerSlice;
}

// Row tiles first, see scores_kernel.
LaunchShape tile_shape(int64_t n_rows, int64_t column_units) {
  return {grid_of(streamed_row_tiles(n_rows), column_units), kThreads, kTileBytes};
}

struct RowStepMemory {
  float2* rows;
  float* mass;
};

RowStepMemory row_step_memory(Workspace& memory, const Heads& scores, int64_t n_valid) {
  auto* rows = memory.take<float2>(n_valid * scores.n_slices);
  return {rows, memory.take<float>(tile_chunks(scores, n_valid).count * scores.n_columns)};
}

StreamedLoss loss_of(const StreamedProblem& problem) {
  StreamedLoss p{};
  static_cast<LossParameters&>(p) = loss_parameters(problem);
  p.student = factors_of(problem.student);
  p.teacher = factors_of(problem.teacher);
  p.scores = scores_of(problem.student);
  bool same = problem.student.n_heads == problem.teacher.n_heads &&
              problem.student.dtype == problem.teacher.dtype;
  for (int64_t h = 0; same && h < problem.student.n_heads; ++h) {
    same = problem.student.n_prototypes[h] == problem.teacher.n_prototypes[h];
  }
  if (!same) throw std::invalid_argument("student and teacher differ in heads or type");
  return p;
}

}  // namespace

int64_t streamed_row_tiles(int64_t n_rows) {
  return divide_up(n_rows, kTileRows);
}

std::size_t prototype_scores_workspace(const ScoreSide& side, bool with_logsumexp) {
  Workspace memory(nullptr, 0);
  if (with_logsumexp) memory.take<float2>(side.n_rows * scores_of(side).n_slices);
  return memory.used();
}

void prototype_scores(const ScoreSide& side, const Head* out, double temperature, float* logsumexp,
                      void* workspace, std::size_t workspace_bytes, void* stream) {
  if (out == nullptr && logsumexp == nullptr) throw std::invalid_argument("no result is asked for");
  const Heads scores = scores_of(side, out);
  const ScoreFactors factors = factors_of(side);
  const InverseTemperature scale = inverse(temperature);
  if (side.n_rows == 0) return;
  Workspace memory(workspace, workspace_bytes);
  float2* partial =
      logsumexp == nullptr ? nullptr : memory.take<float2>(side.n_rows * scores.n_slices);
  const LaunchShape tiles = tile_shape(side.n_rows, column_tiles(scores));
  const LaunchShape slices = tile_shape(side.n_rows, scores.n_slices);
  const float* no_prototype = nullptr;
  with_factor_type(side.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto run = [&](auto* kernel, const LaunchShape& shape) {
      launch(kernel, shape, stream, factors, scores, scale, side.n_rows, no_prototype, partial);
    };
    if (logsumexp == nullptr) return run(scores_kernel<T, true, false>, tiles);
    if (out == nullptr) return run(scores_kernel<T, false, true>, slices);
    run(scores_kernel<T, true, true>, slices);
  });
  if (logsumexp != nullptr) {
    merge_rows(scores, side.n_rows, partial, {nullptr, logsumexp, nullptr}, stream);
  }
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
  check_rows(side, n_valid);
  const Heads scores = scores_of(side);
  const ScoreFactors factors = factors_of(side);
  const InverseTemperature scale = inverse(temperature);
  const Chunks chunks = tile_chunks(scores, n_valid);
  Workspace memory(workspace, workspace_bytes);
  float* chunk_maximum = memory.take<float>(2 * chunks.count * scores.n_columns);
  float* chunk_total = chunk_maximum + chunks.count * scores.n_columns;
  const bool direct = chunks.count == 1;
  with_factor_type(side.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(streamed_columns_kernel<T, false>,
           {grid_of(column_tiles(scores), chunks.count), kThreads, kTileBytes}, stream, factors,
           scores, scale, n_valid, chunks.rows, static_cast<const float*>(nullptr),
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
  check_rows(side, n_valid);
  const Heads scores = scores_of(side);
  const ScoreFactors factors = factors_of(side);
  const InverseTemperature scale = inverse(temperature);
  Workspace memory(workspace, workspace_bytes);
  const RowStepMemory partial = row_step_memory(memory, scores, n_valid);
  const Chunks chunks = tile_chunks(scores, n_valid);
  with_factor_type(side.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (n_valid > 0) {
      launch(scores_kernel<T, false, true>, tile_shape(n_valid, scores.n_slices), stream, factors,
             scores, scale, n_valid, prototype, partial.rows);
    }
    merge_rows(scores, n_valid, partial.rows, {row, nullptr, nullptr}, stream);
    if (mass == nullptr) return;
    launch(streamed_columns_kernel<T, true>,
           {grid_of(column_tiles(scores), chunks.count), kThreads, kTileBytes}, stream, factors,
           scores, scale, n_valid, chunks.rows, prototype, static_cast<const float*>(row),
           static_cast<float*>(nullptr), chunks.count > 1 ? partial.mass : mass);
  });
  if (mass == nullptr || chunks.count == 1) return;
  merge_mass(scores, equal_parts(scores, chunks.count), partial.mass, {mass, nullptr}, stream);
}

std::size_t streamed_forward_workspace(const StreamedProblem& problem) {
  Workspace memory(nullptr, 0);
  loss_memory(memory, scores_of(problem.student));
  return memory.used();
}

void streamed_forward(const StreamedProblem& problem, float* loss, float* lse, void* workspace,
                      std::size_t workspace_bytes, void* stream) {
  const StreamedLoss p = loss_of(problem);
  Workspace memory(workspace, workspace_bytes);
  const LossMemory temporary = loss_memory(memory, p.scores);
  if (p.scores.n_rows > 0) {
    const LaunchShape shape = tile_shape(p.scores.n_rows, p.scores.n_slices);
    with_factor_type(problem.student.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      launch(streamed_forward_kernel<T>, shape, stream, p, temporary.partial);
    });
  }
  merge_losses(p.scores, p.student_scale, p.n_targets, p.weights, temporary.partial, lse,
               temporary.value, loss, stream);
}

void streamed_gradient(const StreamedProblem& problem, const float* grad_loss, const float* lse,
                       void* out, int64_t out_stride, float* scale_partial, void* stream) {
  const StreamedLoss p = loss_of(problem);
  if (p.scores.n_heads != 1) throw std::invalid_argument("one head at a time");
  if (out_stride % 2 != 0 || reinterpret_cast<std::uintptr_t>(out) % 4 != 0) {
    throw std::invalid_argument("out: rows must start at multiples of 4 bytes");
  }
  if (p.scores.n_rows == 0) return;
  with_factor_type(problem.student.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(streamed_gradient_kernel<T>, tile_shape(p.scores.n_rows, column_tiles(p.scores)), stream,
           p, grad_loss, lse, static_cast<T*>(out), out_stride, scale_partial);
  });
}

}  // namespace franca::cuda
