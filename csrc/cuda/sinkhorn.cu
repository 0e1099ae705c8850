#include "franca/cuda/sinkhorn.hpp"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cuda/merges.cuh"
#include "cuda/primitives/launch.cuh"
#include "cuda/sinkhorn_cluster.cuh"
#include "cuda/sinkhorn_few_rows.cuh"
#include "cuda/sinkhorn_kernels.cuh"

namespace franca::cuda {
namespace {

Chunks chunks_of(const Heads& heads, int64_t n_rows) {
  return share_rows(n_rows, heads.n_slices, multiprocessors());
}

LaunchShape row_mass_shape(const RowMassPlan& plan, int n_clusters) {
  return {grid_of(static_cast<int64_t>(n_clusters) * plan.cluster),
          static_cast<unsigned>(plan.threads), row_mass_shared_bytes(plan.threads),
          static_cast<unsigned>(plan.cluster)};
}

int blocks_of_a_row(int64_t columns, int threads) {
  int blocks = 1;
  while (static_cast<int64_t>(blocks) * threads * kRowColumns < columns) blocks *= 2;
  return blocks;
}

// Numbers the steps of all heads through; `active` clusters run at once.
void share_steps(RowMassPlan& plan, const Heads& heads, int active, int64_t n_valid) {
  for (int h = 0; h < heads.n_heads; ++h) {
    plan.first_step[h] = plan.n_steps;
    plan.n_steps += divide_up(n_valid, plan.teams(h));
  }
  plan.n_clusters = static_cast<int>(smaller(active, plan.n_steps));
}

template <class T>
auto row_mass_kernel_of(int threads) {
  return threads == kRowMassThreads ? row_mass_kernel<T, kRowMassThreads>
                                    : row_mass_kernel<T, kRowMassThreads / 2>;
}

// n_clusters is 0 where the rows do not fit on chip. Small blocks are tried first: two of them
// share a multiprocessor, so one computes while the other waits for its team.
template <class T>
RowMassPlan plan_row_mass(const Heads& heads, int64_t n_valid) {
  for (int threads : {kRowMassThreads / 2, kRowMassThreads}) {
    RowMassPlan plan{};
    plan.threads = threads;
    plan.cluster = 1;
    for (int h = 0; h < heads.n_heads; ++h) {
      plan.team[h] = blocks_of_a_row(heads.head[h].columns, threads);
      if (plan.team[h] > plan.cluster) plan.cluster = plan.team[h];
    }
    if (plan.cluster > kLargestCluster) continue;
    const int active = active_clusters(row_mass_kernel_of<T>(threads), row_mass_shape(plan, 1));
    if (active == 0) continue;
    share_steps(plan, heads, active, n_valid);
    return plan;
  }
  return {};
}

RowMassPlan plan_row_mass(const RaggedLogits& logits, const Heads& heads, int64_t n_valid,
                          bool with_mass) {
  RowMassPlan plan{};
  if (n_valid <= kFewRows || n_valid > INT32_MAX / 2 || !with_mass) return plan;
  with_type(logits.dtype, [&](auto* type) {
    plan = plan_row_mass<std::remove_pointer_t<decltype(type)>>(heads, n_valid);
  });
  return plan;
}

// Each head has a partial mass for every team of the clusters that meet it; and all their elements.
std::pair<MassParts, int64_t> mass_parts(const Heads& heads, const RowMassPlan& plan) {
  MassParts parts{};
  int64_t size = 0;
  for (int h = 0; h < heads.n_heads; ++h) {
    const int64_t end = h + 1 < heads.n_heads ? plan.first_step[h + 1] : plan.n_steps;
    const int clusters = plan.cluster_of(end - 1) - plan.cluster_of(plan.first_step[h]) + 1;
    parts.groups[h] = clusters * plan.teams(h);
    parts.first[h] = size;
    parts.stride[h] = heads.head[h].columns;
    size += parts.groups[h] * parts.stride[h];
  }
  return {parts, size};
}

struct RowStepMemory {
  float2* row_partials;
  float* mass_partials;
};

RowStepMemory row_step_memory(Workspace& memory, const Heads& heads, const RowMassPlan& plan,
                              int64_t n_valid, bool with_mass) {
  if (plan.n_clusters > 0) return {nullptr, memory.take<float>(mass_parts(heads, plan).second)};
  float2* rows = memory.take<float2>(n_valid * heads.n_slices);
  const int64_t chunks = chunks_of(heads, n_valid).count;
  return {rows, with_mass ? memory.take<float>(chunks * heads.n_columns) : nullptr};
}

// A row half-step: potentials `row` for given ones of the prototypes; guesses of them may be null.
struct RowStep {
  InverseTemperature scale;
  int64_t n_valid;
  const float* prototype;
  const float* guess;
  float* row;
};

template <class T>
void row_partials(const Heads& heads, const RowStep& step, float2* partial, void* stream) {
  if (step.n_valid == 0) return;
  const Chunks chunks = short_chunks(step.n_valid, heads.n_slices, multiprocessors());
  launch(row_partials_kernel<T>, {grid_of(heads.n_slices, chunks.count), kThreads, kSliceBytes},
         stream, heads, step.scale, step.n_valid, chunks.rows, step.prototype, step.guess, partial);
}

template <class T>
void column_mass(const Heads& heads, const RowStep& step, float* partial, const MassOutputs& out,
                 void* stream) {
  const Chunks chunks = chunks_of(heads, step.n_valid);
  launch(column_mass_kernel<T>, {grid_of(heads.n_slices, chunks.count), kThreads}, stream, heads,
         step.scale, step.n_valid, chunks.rows, step.prototype, static_cast<const float*>(step.row),
         partial);
  merge_mass(heads, equal_parts(heads, chunks.count), partial, out, stream);
}

template <class T>
void row_mass(const Heads& heads, const RowMassPlan& plan, const RowStep& step, float* partial,
              const MassOutputs& out, void* stream) {
  const MassParts parts = mass_parts(heads, plan).first;
  const RowMassParameters p{
      heads,          plan,       parts,    step.scale, static_cast<int>(step.n_valid),
      step.prototype, step.guess, step.row, partial};
  launch(row_mass_kernel_of<T>(plan.threads), row_mass_shape(plan, plan.n_clusters), stream, p);
  merge_mass(heads, parts, partial, out, stream);
}

// Chunks of rows of the column pass, as maximum and total [chunk, column].
struct ColumnMemory {
  Chunks chunks;
  float* maximum;
  float* total;
};

ColumnMemory column_memory(Workspace& memory, const Heads& heads, int64_t n_valid) {
  const Chunks chunks = chunks_of(heads, n_valid);
  float* maximum = memory.take<float>(chunks.count * heads.n_columns);
  return {chunks, maximum, memory.take<float>(chunks.count * heads.n_columns)};
}

template <class T>
void column_pass(const Heads& heads, double temperature, int64_t n_valid, Workspace memory,
                 const ColumnOutputs& out, void* stream) {
  const ColumnMemory part = column_memory(memory, heads, n_valid);
  launch(column_logsumexp_kernel<T>, {grid_of(heads.n_slices, part.chunks.count), kThreads}, stream,
         heads, inverse(temperature), n_valid, part.chunks.rows, part.maximum, part.total);
  merge_columns(heads.n_columns, part.chunks.count, part.maximum, part.total, out, stream);
}

// Row potentials and, unless both outputs are null, masses.
template <class T>
void row_pass(const Heads& heads, const RowMassPlan& plan, const RowStep& step, Workspace memory,
              const MassOutputs& out, void* stream) {
  const bool with_mass = out.mass != nullptr || out.prototype != nullptr;
  const RowStepMemory partial = row_step_memory(memory, heads, plan, step.n_valid, with_mass);
  if (plan.n_clusters > 0) {
    row_mass<T>(heads, plan, step, partial.mass_partials, out, stream);
    return;
  }
  row_partials<T>(heads, step, partial.row_partials, stream);
  merge_rows(heads, step.n_valid, partial.row_partials, {step.row, nullptr, nullptr}, stream);
  if (!with_mass) return;
  column_mass<T>(heads, step, partial.mass_partials, out, stream);
}

// Both memories of the row sums of few rows.
struct FewRowsSums {
  float2* partial[2];
};

FewRowsSums few_rows_sums(Workspace& memory, const Heads& heads, int64_t n_valid) {
  float2* first = memory.take<float2>(n_valid * heads.n_slices);
  return {{first, memory.take<float2>(n_valid * heads.n_slices)}};
}

template <class T>
void potentials_of_few_rows(const Heads& heads, double temperature, int64_t n_iterations,
                            int64_t n_valid, float* prototype, float* row, Workspace memory,
                            void* stream) {
  const FewRowsSums sums = few_rows_sums(memory, heads, n_valid);
  const std::size_t most = most_shared_bytes();
  const int on_chip = sizeof(T) < sizeof(float) ? kBatches - 1 : kBatches;
  int batches = 0;
  while (batches < on_chip &&
         sizeof(FewRowsMemory) + static_cast<std::size_t>(batches + 1) * kBatchBytes<T> <= most) {
    ++batches;
  }
  LaunchShape shape{grid_of(heads.n_slices), kFewRowsThreads,
                    sizeof(FewRowsMemory) + static_cast<std::size_t>(batches) * kBatchBytes<T>};
  FewRowsParameters p{heads,
                      inverse(temperature),
                      static_cast<int>(n_valid),
                      batches,
                      0,
                      static_cast<int>(n_iterations),
                      true,
                      prototype,
                      {sums.partial[0], sums.partial[1]},
                      row};
  if (fits_together(few_rows_kernel<T, true>, shape)) {
    shape.cooperative = true;
    launch(few_rows_kernel<T, true>, shape, stream, p);
    return;
  }
  p.finish = false;
  for (int64_t i = 0; i < n_iterations; ++i) {
    p.first_iteration = static_cast<int>(i);
    p.end_iteration = static_cast<int>(i + 1);
    launch(few_rows_kernel<T, false>, shape, stream, p);
  }
  merge_rows(heads, n_valid, p.partial[(n_iterations - 1) % 2], {row, nullptr, nullptr}, stream);
}

}  // namespace

bool has_code() {
  return driver::has_code(reinterpret_cast<const void*>(&row_partials_kernel<float>));
}

std::size_t column_logsumexp_workspace(const RaggedLogits& logits, int64_t n_valid) {
  Workspace memory(nullptr, 0);
  column_memory(memory, make_heads(logits), n_valid);
  return memory.used();
}

void column_logsumexp(const RaggedLogits& logits, double temperature, int64_t n_valid,
                      float* maximum, float* total, void* workspace, std::size_t workspace_bytes,
                      void* stream) {
  const Heads heads = make_heads(logits);
  check_valid_rows(n_valid, heads.n_rows);
  with_type(logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    column_pass<T>(heads, temperature, n_valid, {workspace, workspace_bytes},
                   {maximum, total, nullptr}, stream);
  });
}

std::size_t row_step_workspace(const RaggedLogits& logits, int64_t n_valid, bool with_mass) {
  const Heads heads = make_heads(logits);
  Workspace memory(nullptr, 0);
  row_step_memory(memory, heads, plan_row_mass(logits, heads, n_valid, with_mass), n_valid,
                  with_mass);
  return memory.used();
}

void row_step(const RaggedLogits& logits, double temperature, const float* prototype,
              int64_t n_valid, float* row, float* mass, void* workspace,
              std::size_t workspace_bytes, void* stream) {
  const Heads heads = make_heads(logits);
  check_valid_rows(n_valid, heads.n_rows);
  const RowMassPlan plan = plan_row_mass(logits, heads, n_valid, mass != nullptr);
  with_type(logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    row_pass<T>(heads, plan, {inverse(temperature), n_valid, prototype, nullptr, row},
                {workspace, workspace_bytes}, {mass, nullptr}, stream);
  });
}

std::size_t assignments_workspace(const RaggedLogits& logits) {
  const Heads heads = make_heads(logits);
  Workspace memory(nullptr, 0);
  memory.take<float2>(heads.n_rows * heads.n_slices);
  memory.take<float2>(heads.n_heads * heads.n_rows);
  return memory.used();
}

void assignments(const RaggedLogits& logits, double temperature, const float* prototype,
                 int64_t n_valid, float* const* out, void* workspace, std::size_t workspace_bytes,
                 void* stream) {
  const Heads heads = make_heads(logits);
  check_valid_rows(n_valid, heads.n_rows);
  if (heads.n_rows == 0) return;
  const InverseTemperature scale = inverse(temperature);
  Workspace memory(workspace, workspace_bytes);
  auto* partial = memory.take<float2>(heads.n_rows * heads.n_slices);
  auto* normaliser = memory.take<float2>(heads.n_heads * heads.n_rows);
  Outputs outputs{};
  for (int h = 0; h < heads.n_heads; ++h) outputs.head[h] = out[h];
  const Chunks chunks = chunks_of(heads, heads.n_rows);
  with_type(logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    row_partials<T>(heads, {scale, n_valid, prototype, nullptr, nullptr}, partial, stream);
    merge_rows(heads, n_valid, partial, {nullptr, nullptr, normaliser}, stream);
    launch(assignments_kernel<T>, {grid_of(heads.n_slices, chunks.count), kThreads, kSliceBytes},
           stream, heads, scale, n_valid, chunks.rows, prototype, normaliser, outputs);
  });
}

RowSharing row_sharing(const RaggedLogits& logits, int64_t n_valid) {
  const Heads heads = make_heads(logits);
  const RowMassPlan plan = plan_row_mass(logits, heads, n_valid, true);
  if (plan.n_clusters == 0) return {};
  const MassParts parts = mass_parts(heads, plan).first;
  return {plan.threads, plan.cluster, plan.n_clusters,
          std::vector<int>(parts.groups, parts.groups + logits.n_heads)};
}

std::size_t potentials_workspace(const RaggedLogits& logits, int64_t n_valid) {
  const Heads heads = make_heads(logits);
  Workspace memory(nullptr, 0);
  if (n_valid <= kFewRows) {
    few_rows_sums(memory, heads, n_valid);
    return memory.used();
  }
  memory.take<float>(heads.n_heads * heads.n_rows);
  // The passes come one after the other and use the same memory.
  return memory.used() + std::max({column_logsumexp_workspace(logits, n_valid),
                                   row_step_workspace(logits, n_valid, true),
                                   row_step_workspace(logits, n_valid, false)});
}

void potentials(const RaggedLogits& logits, double temperature, int64_t n_iterations,
                int64_t n_valid, float* prototype, float* row, void* workspace,
                std::size_t workspace_bytes, void* stream) {
  const Heads heads = make_heads(logits);
  check_valid_rows(n_valid, heads.n_rows);
  if (n_iterations < 1) throw std::invalid_argument("n_iterations must be at least 1");
  Workspace memory(workspace, workspace_bytes);
  const RowMassPlan plan = plan_row_mass(logits, heads, n_valid, n_iterations > 1);
  with_type(logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (n_valid <= kFewRows) {
      potentials_of_few_rows<T>(heads, temperature, n_iterations, n_valid, prototype, row, memory,
                                stream);
      return;
    }
    // The potentials of one iteration are read while those of the next one are written.
    float* const rows[2] = {row, memory.take<float>(heads.n_heads * heads.n_rows)};
    column_pass<T>(heads, temperature, n_valid, memory, {nullptr, nullptr, prototype}, stream);
    for (int64_t left = n_iterations - 1; left >= 0; --left) {
      const bool first = left == n_iterations - 1, last = left == 0;
      const RowStep step{inverse(temperature), n_valid, prototype,
                         first ? nullptr : rows[(left + 1) % 2], rows[left % 2]};
      row_pass<T>(heads, last ? RowMassPlan{} : plan, step, memory,
                  {nullptr, last ? nullptr : prototype}, stream);
    }
  });
}

}  // namespace franca::cuda
