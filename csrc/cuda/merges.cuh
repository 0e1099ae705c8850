// Adding up partial results in an order that never changes: the last launch of most passes.
#pragma once

#include "cuda/logits.cuh"

namespace franca::cuda {

// Where the partial masses of each head lie: group g of column k at first + g * stride + k.
struct MassParts {
  int groups[kMaxHeads];
  int64_t first[kMaxHeads];
  int64_t stride[kMaxHeads];
};

// As many groups for all heads, [group, column].
inline MassParts equal_parts(const Heads& heads, int64_t groups) {
  MassParts parts{};
  for (int h = 0; h < heads.n_heads; ++h) {
    parts.groups[h] = static_cast<int>(groups);
    parts.first[h] = heads.head[h].first_column;
    parts.stride[h] = heads.n_columns;
  }
  return parts;
}

// What is wanted of the columns: maximum and total of their log-sum-exp or, where that is not null,
// the prototype potential, which is minus the log-sum-exp and 0 for columns without rows.
struct ColumnOutputs {
  float* maximum;
  float* total;
  float* prototype;
};

// What is wanted of the masses: themselves or, where that is not null, log mass taken off the
// prototype potential.
struct MassOutputs {
  float* mass;
  float* prototype;
};

// What is wanted of the rows, each [H, N]; null entries are not. Padding has log-sum-exp inf, which
// makes its potential -inf.
struct RowOutputs {
  float* row;          // minus the log-sum-exp
  float* logsumexp;    // the same with its sign
  float2* normaliser;  // maximum and total; anything for padding
};

// [chunk, column] to [column].
void merge_columns(int64_t n_columns, int64_t n_chunks, const float* chunk_maximum,
                   const float* chunk_total, const ColumnOutputs& out, void* stream);

void merge_mass(const Heads& heads, const MassParts& parts, const float* partial,
                const MassOutputs& out, void* stream);

// Log-sum-exp over each head's slices of partial[n, slice].
void merge_rows(const Heads& heads, int64_t n_valid, const float2* partial, const RowOutputs& out,
                void* stream);

// From maximum, total and agreement [m, slice]: lse [H, M] and loss [H]; value [H, M] is scratch.
void merge_losses(const Heads& heads, InverseTemperature scale, int n_targets, const float* weights,
                  const float4* partial, float* lse, float* value, float* loss, void* stream);

}  // namespace franca::cuda
