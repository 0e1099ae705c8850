#include "franca/cuda/sinkhorn.hpp"

#include <algorithm>

#include "cuda/merges.cuh"
#include "cuda/primitives/launch.cuh"
#include "cuda/sinkhorn_cluster.cuh"
#include "cuda/sinkhorn_kernels.cuh"

namespace franca::cuda {
namespace {

constexpr std::size_t kSliceBytes = kSliceColumns * sizeof(float);

Chunks chunks_of(const Heads& heads, int64_t n_rows) {
  return share_rows(n_rows, heads.n_slices, multiprocessors());
}

void check_rows(const Heads& heads, int64_t n_valid) {
  if (n_valid < 0 || n_valid > heads.n_rows) {
    throw std::invalid_argument("n_valid " + std::to_string(n_valid) + "; accepted: 0 to " +
                                std::to_string(heads.n_rows));
  }
}

// Gives every head the clusters that make the slowest of them as fast as possible.
void share_clusters(RowMassPlan& plan, const Heads& heads, int active, int64_t n_valid) {
  int share[kMaxHeads];
  const auto teams = [&](int h) { return plan.cluster / plan.team[h]; };
  for (int h = 0; h < heads.n_heads; ++h) share[h] = 1;
  for (int used = heads.n_heads; used < active; ++used) {
    int slowest = -1;
    double most_rows = 0;
    for (int h = 0; h < heads.n_heads; ++h) {
      const int64_t groups = static_cast<int64_t>(share[h]) * teams(h);
      const double rows = static_cast<double>(n_valid) / static_cast<double>(groups);
      if (rows > most_rows && groups < n_valid) slowest = h, most_rows = rows;
    }
    if (slowest < 0) break;
    ++share[slowest];
  }
  for (int h = 0; h < heads.n_heads; ++h) {
    plan.first_cluster[h] = plan.n_clusters;
    plan.groups[h] = share[h] * teams(h);
    plan.n_clusters += share[h];
  }
}

int blocks_of_a_row(int64_t columns, int threads) {
  int blocks = 1;
  while (static_cast<int64_t>(blocks) * threads * kRowColumns < columns) blocks *= 2;
  return blocks;
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
    const LaunchShape shape{grid_of(plan.cluster), static_cast<unsigned>(threads),
                            row_mass_shared_bytes(threads, plan.cluster),
                            static_cast<unsigned>(plan.cluster)};
    const int active = active_clusters(row_mass_kernel<T>, shape);
    if (active == 0) continue;
    share_clusters(plan, heads, active, n_valid);
    return plan;
  }
  return {};
}

RowMassPlan plan_row_mass(const RaggedLogits& logits, const Heads& heads, int64_t n_valid,
                          bool with_mass) {
  RowMassPlan plan{};
  if (n_valid <= kFewRows || !with_mass) return plan;
  with_type(logits.dtype, [&](auto* type) {
    plan = plan_row_mass<std::remove_pointer_t<decltype(type)>>(heads, n_valid);
  });
  return plan;
}

struct RowStepMemory {
  float2* row_partials;
  float* mass_partials;
};

RowStepMemory row_step_memory(Workspace& memory, const Heads& heads, const RowMassPlan& plan,
                              int64_t n_valid, bool with_mass) {
  if (plan.n_clusters > 0) {
    int most_groups = 1;
    for (int h = 0; h < heads.n_heads; ++h) most_groups = std::max(most_groups, plan.groups[h]);
    return {nullptr, memory.take<float>(most_groups * heads.n_columns)};
  }
  float2* rows = memory.take<float2>(n_valid * heads.n_slices);
  const int64_t chunks = chunks_of(heads, n_valid).count;
  return {rows, with_mass ? memory.take<float>(chunks * heads.n_columns) : nullptr};
}

template <class T>
void row_partials(const Heads& heads, InverseTemperature scale, int64_t n_valid,
                  const float* prototype, float2* partial, void* stream) {
  if (n_valid == 0) return;
  const Chunks chunks = chunks_of(heads, n_valid);
  launch(row_partials_kernel<T>, {grid_of(heads.n_slices, chunks.count), kThreads, kSliceBytes},
         stream, heads, scale, n_valid, chunks.rows, prototype, partial);
}

template <class T>
void column_mass(const Heads& heads, InverseTemperature scale, int64_t n_valid,
                 const float* prototype, const float* row, float* partial, const MassOutputs& out,
                 void* stream) {
  const Chunks chunks = chunks_of(heads, n_valid);
  launch(column_mass_kernel<T>, {grid_of(heads.n_slices, chunks.count), kThreads}, stream, heads,
         scale, n_valid, chunks.rows, prototype, row, partial);
  GroupCounts counts{};
  for (int h = 0; h < heads.n_heads; ++h) counts.groups[h] = static_cast<int>(chunks.count);
  merge_mass(heads, counts, partial, out, stream);
}

template <class T>
void row_mass(const Heads& heads, const RowMassPlan& plan, InverseTemperature scale,
              int64_t n_valid, const float* prototype, float* row, float* partial,
              const MassOutputs& out, void* stream) {
  const LaunchShape shape{grid_of(static_cast<int64_t>(plan.n_clusters) * plan.cluster),
                          static_cast<unsigned>(plan.threads),
                          row_mass_shared_bytes(plan.threads, plan.cluster),
                          static_cast<unsigned>(plan.cluster)};
  launch(row_mass_kernel<T>, shape, stream, heads, plan, scale, n_valid, prototype, row, partial);
  GroupCounts counts{};
  for (int h = 0; h < heads.n_heads; ++h) counts.groups[h] = plan.groups[h];
  merge_mass(heads, counts, partial, out, stream);
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
void column_pass(const Heads& heads, InverseTemperature scale, int64_t n_valid, Workspace memory,
                 const ColumnOutputs& out, void* stream) {
  const ColumnMemory part = column_memory(memory, heads, n_valid);
  launch(column_logsumexp_kernel<T>, {grid_of(heads.n_slices, part.chunks.count), kThreads}, stream,
         heads, scale, n_valid, part.chunks.rows, part.maximum, part.total);
  merge_columns(heads.n_columns, part.chunks.count, part.maximum, part.total, out, stream);
}

// Row potentials and, unless both outputs are null, masses.
template <class T>
void row_pass(const Heads& heads, const RowMassPlan& plan, InverseTemperature scale,
              int64_t n_valid, const float* prototype, Workspace memory, float* row,
              const MassOutputs& out, void* stream) {
  const bool with_mass = out.mass != nullptr || out.prototype != nullptr;
  const RowStepMemory partial = row_step_memory(memory, heads, plan, n_valid, with_mass);
  if (plan.n_clusters > 0) {
    row_mass<T>(heads, plan, scale, n_valid, prototype, row, partial.mass_partials, out, stream);
    return;
  }
  row_partials<T>(heads, scale, n_valid, prototype, partial.row_partials, stream);
  merge_rows(heads, n_valid, partial.row_partials, {row, nullptr, nullptr}, stream);
  if (!with_mass) return;
  column_mass<T>(heads, scale, n_valid, prototype, row, partial.mass_partials, out, stream);
}

template <class T>
void potentials_of_few_rows(const Heads& heads, InverseTemperature scale, int64_t n_iterations,
                            int64_t n_valid, float* prototype, float* row, Workspace memory,
                            void* stream) {
  const LaunchShape shape{grid_of(heads.n_slices), kIterationThreads, sizeof(IterationMemory)};
  const int64_t n_partials = n_valid * heads.n_slices;
  float2* partial[2] = {memory.take<float2>(n_partials), memory.take<float2>(n_partials)};
  launch(iteration_kernel<T, true>, shape, stream, heads, scale, n_valid,
         static_cast<const float2*>(nullptr), prototype, partial[0]);
  // An iteration writes partials while other blocks still read those of the last one.
  for (int64_t i = 1; i < n_iterations; ++i) {
    launch(iteration_kernel<T, false>, shape, stream, heads, scale, n_valid,
           static_cast<const float2*>(partial[(i - 1) % 2]), prototype, partial[i % 2]);
  }
  merge_rows(heads, n_valid, partial[(n_iterations - 1) % 2], {row, nullptr, nullptr}, stream);
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
  check_rows(heads, n_valid);
  with_type(logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    column_pass<T>(heads, inverse(temperature), n_valid, {workspace, workspace_bytes},
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
  check_rows(heads, n_valid);
  const RowMassPlan plan = plan_row_mass(logits, heads, n_valid, mass != nullptr);
  with_type(logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    row_pass<T>(heads, plan, inverse(temperature), n_valid, prototype, {workspace, workspace_bytes},
                row, {mass, nullptr}, stream);
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
  check_rows(heads, n_valid);
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
    row_partials<T>(heads, scale, n_valid, prototype, partial, stream);
    merge_rows(heads, n_valid, partial, {nullptr, nullptr, normaliser}, stream);
    launch(assignments_kernel<T>, {grid_of(heads.n_slices, chunks.count), kThreads, kSliceBytes},
           stream, heads, scale, n_valid, chunks.rows, prototype, normaliser, outputs);
  });
}

RowSharing row_sharing(const RaggedLogits& logits, int64_t n_valid) {
  const RowMassPlan plan = plan_row_mass(logits, make_heads(logits), n_valid, true);
  if (plan.n_clusters == 0) return {};
  return {plan.threads, plan.cluster, plan.n_clusters,
          std::vector<int>(plan.groups, plan.groups + logits.n_heads)};
}

std::size_t potentials_workspace(const RaggedLogits& logits, int64_t n_valid) {
  if (n_valid <= kFewRows) {
    Workspace memory(nullptr, 0);
    const Heads heads = make_heads(logits);
    for (int i = 0; i < 2; ++i) memory.take<float2>(n_valid * heads.n_slices);
    return memory.used();
  }
  // The passes come one after the other and use the same memory.
  return std::max({column_logsumexp_workspace(logits, n_valid),
                   row_step_workspace(logits, n_valid, true),
                   row_step_workspace(logits, n_valid, false)});
}

void potentials(const RaggedLogits& logits, double temperature, int64_t n_iterations,
                int64_t n_valid, float* prototype, float* row, void* workspace,
                std::size_t workspace_bytes, void* stream) {
  const Heads heads = make_heads(logits);
  check_rows(heads, n_valid);
  if (n_iterations < 1) throw std::invalid_argument("n_iterations must be at least 1");
  const InverseTemperature scale = inverse(temperature);
  const Workspace memory(workspace, workspace_bytes);
  const RowMassPlan plan = plan_row_mass(logits, heads, n_valid, n_iterations > 1);
  with_type(logits.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (n_valid <= kFewRows) {
      potentials_of_few_rows<T>(heads, scale, n_iterations, n_valid, prototype, row, memory,
                                stream);
      return;
    }
    column_pass<T>(heads, scale, n_valid, memory, {nullptr, nullptr, prototype}, stream);
    for (int64_t i = 1; i < n_iterations; ++i) {
      row_pass<T>(heads, plan, scale, n_valid, prototype, memory, row, {nullptr, prototype},
                  stream);
    }
    row_pass<T>(heads, {}, scale, n_valid, prototype, memory, row, {nullptr, nullptr}, stream);
  });
}

}  // namespace franca::cuda
