// Adding up partial results in an order that never changes: the last launch of most passes.
#pragma once

#include "cuda/logits.cuh"

namespace franca::cuda {

// How many partial masses each head has.
struct GroupCounts {
  int groups[kMaxHeads];
};

// [chunk, column] to [column].
void merge_columns(int64_t n_columns, int64_t n_chunks, const float* chunk_maximum,
                   const float* chunk_total, float* maximum, float* total, void* stream);

void merge_mass(const Heads& heads, const GroupCounts& counts, const float* partial, float* mass,
                void* stream);

// row[h, n] = -logsumexp over the head's slices of partial[n, slice], -inf for padding. Unless
// null, normaliser[h, n] keeps maximum and total.
void merge_rows(const Heads& heads, int64_t n_valid, const float2* partial, float* row,
                float2* normaliser, void* stream);

// From maximum, total and agreement [m, slice]: lse [H, M] and loss [H]; value [H, M] is scratch.
void merge_losses(const Heads& heads, InverseTemperature scale, int n_targets, const float* weights,
                  const float4* partial, float* lse, float* value, float* loss, void* stream);

}  // namespace franca::cuda
