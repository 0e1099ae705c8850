#include "cuda/merges.cuh"

#include "cuda/primitives/block.cuh"
#include "cuda/primitives/launch.cuh"

namespace franca::cuda {
namespace {

// Merges the chunks of column_logsumexp_kernel and streamed_columns_kernel.
__global__ void __launch_bounds__(kThreads)
    merge_columns_kernel(int64_t n_columns, int64_t n_chunks, const float* chunk_maximum,
                         const float* chunk_total, ColumnOutputs out) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= n_columns) return;
  LogSumExp sum;
  for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    sum.merge({chunk_maximum[chunk * n_columns + k], chunk_total[chunk * n_columns + k]});
  }
  if (out.prototype != nullptr) {
    out.prototype[k] = sum.total > 0.0f ? -(sum.maximum + logf(sum.total)) : 0.0f;
    return;
  }
  out.maximum[k] = sum.maximum;
  out.total[k] = sum.total;
}

__global__ void __launch_bounds__(kThreads)
    merge_mass_kernel(const __grid_constant__ Heads heads, const __grid_constant__ MassParts parts,
                      const float* partial, MassOutputs out) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= heads.n_columns) return;
  int h = heads.n_heads - 1;
  while (heads.head[h].first_column > k) --h;
  const float* from = partial + parts.first[h] + (k - heads.head[h].first_column);
  float sum = 0.0f;
  for (int group = 0; group < parts.groups[h]; ++group) sum += from[group * parts.stride[h]];
  if (out.prototype == nullptr) {
    out.mass[k] = sum;
  } else if (sum > 0.0f) {
    out.prototype[k] -= logf(sum);
  }
}

// Merges the slices of each row, one warp for each.
__global__ void __launch_bounds__(kThreads)
    merge_rows_kernel(const __grid_constant__ Heads heads, int64_t n_valid, const float2* partial,
                      RowOutputs out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (index >= heads.n_heads * heads.n_rows) return;
  const int h = static_cast<int>(index / heads.n_rows);
  const int64_t n = index % heads.n_rows;
  LogSumExp sum;
  if (n < n_valid) sum = merge_slices(heads, h, n, partial);
  if (lane_index() != 0) return;
  const float logsumexp = n < n_valid ? sum.maximum + logf(sum.total) : kInfinity;
  if (out.row != nullptr) out.row[index] = -logsumexp;
  if (out.logsumexp != nullptr) out.logsumexp[index] = logsumexp;
  if (out.normaliser != nullptr) out.normaliser[index] = make_float2(sum.maximum, sum.total);
}

// One warp for each row of each head: lse[h, m] and value[h, m] = w (P lse - sum_k q s/t).
__global__ void __launch_bounds__(kThreads)
    merge_clustering_rows_kernel(const __grid_constant__ Heads heads, InverseTemperature scale,
                                 int n_targets, const float* weights, const float4* partial,
                                 float* lse, float* value) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (index >= heads.n_heads * heads.n_rows) return;
  const int h = static_cast<int>(index / heads.n_rows);
  const int64_t m = index % heads.n_rows;
  const int64_t end = end_of_slices(heads, h);
  LogSumExp sum;
  float agreement = 0.0f;
  for (int64_t s = heads.head[h].first_slice + lane_index(); s < end; s += kWarpSize) {
    const float4 part = partial[m * heads.n_slices + s];
    sum.merge({part.x, part.y});
    agreement += part.z;
  }
  sum.merge_warp();
  agreement = warp_sum(agreement);
  if (lane_index() != 0) return;
  const float logsumexp = sum.maximum + logf(sum.total);
  const auto targets = static_cast<float>(n_targets);
  lse[index] = logsumexp;
  value[index] = weights[m] * (targets * logsumexp - exponent(agreement, scale, 0.0f));
}

// out[h] = sum_m value[h, m], one block for each head, in an order that never changes.
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(int64_t n_rows, const float* value, float* out) {
  float* warps = reinterpret_cast<float*>(shared_memory());
  const float* from = value + static_cast<int64_t>(blockIdx.x) * n_rows;
  float sum = 0.0f;
  for (int64_t m = threadIdx.x; m < n_rows; m += kThreads) sum += from[m];
  sum = warp_sum(sum);
  if (lane_index() == 0) warps[warp_index()] = sum;
  block_barrier();
  if (threadIdx.x != 0) return;
  sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += warps[w];
  out[blockIdx.x] = sum;
}

}  // namespace

void merge_columns(int64_t n_columns, int64_t n_chunks, const float* chunk_maximum,
                   const float* chunk_total, const ColumnOutputs& out, void* stream) {
  launch(merge_columns_kernel, {grid_of(divide_up(n_columns, kThreads)), kThreads}, stream,
         n_columns, n_chunks, chunk_maximum, chunk_total, out);
}

void merge_mass(const Heads& heads, const MassParts& parts, const float* partial,
                const MassOutputs& out, void* stream) {
  launch(merge_mass_kernel, {grid_of(divide_up(heads.n_columns, kThreads)), kThreads}, stream,
         heads, parts, partial, out);
}

void merge_rows(const Heads& heads, int64_t n_valid, const float2* partial, const RowOutputs& out,
                void* stream) {
  if (heads.n_rows == 0) return;
  launch(merge_rows_kernel, {grid_of(divide_up(heads.n_heads * heads.n_rows, kWarps)), kThreads},
         stream, heads, n_valid, partial, out);
}

void merge_losses(const Heads& heads, InverseTemperature scale, int n_targets, const float* weights,
                  const float4* partial, float* lse, float* value, float* loss, void* stream) {
  const int64_t n_values = heads.n_heads * heads.n_rows;
  if (n_values > 0) {
    launch(merge_clustering_rows_kernel, {grid_of(divide_up(n_values, kWarps)), kThreads}, stream,
           heads, scale, n_targets, weights, partial, lse, value);
  }
  launch(sum_rows_kernel, {grid_of(heads.n_heads), kThreads, kWarps * sizeof(float)}, stream,
         heads.n_rows, value, loss);
}

}  // namespace franca::cuda
