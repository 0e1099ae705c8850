// Half-steps of Sinkhorn-Knopp on potentials: Q[n,k] = exp(z[n,k]/T + a[k] + b[n]).
//
// Every pass reads the logits once and stores nothing of their size. Rows from n_valid on are
// padding. Results have the same bits for any number of threads. The functions throw
// std::invalid_argument for sizes that cannot be meant; they cannot check the memory behind a view.
#pragma once

#include <cstddef>
#include <cstdint>

#include "franca/views.hpp"

namespace franca::cpu {

// maximum[k] = max_n z[n,k]/T and total[k] = sum_n exp(z[n,k]/T - maximum[k]); -inf and 0 when
// there is no valid row.
void column_logsumexp(const RaggedLogits& logits, double temperature, int64_t n_valid,
                      float* maximum, float* total, int threads);

// Bytes of workspace that row_step needs for the masses; at most 1/32 of float logits of 64 or more
// rows.
std::size_t row_step_workspace(int64_t total_columns, int64_t n_valid);

// row[h,n] = -log sum_k exp(z/T + a[k]), -inf from n_valid on, and, unless mass is null,
// mass[k] = sum_n exp(z/T + a[k] + row[h,n]) in the same read of the logits.
void row_step(const RaggedLogits& logits, double temperature, const float* prototype,
              int64_t n_valid, float* row, float* mass, void* workspace,
              std::size_t workspace_bytes, int threads);

// out[h][n,k] = softmax over k of z/T + a[k], float32 and contiguous; 0 from n_valid on.
void assignments(const RaggedLogits& logits, double temperature, const float* prototype,
                 int64_t n_valid, float* const* out, int threads);

// Bytes of workspace that `potentials` needs; 0 where it would refuse.
std::size_t potentials_workspace(const RaggedLogits& logits, int64_t n_valid, int threads);

// All iterations at once: prototype [sum K] and row [H, N], as the passes above would give. Each
// iteration reads the logits once and takes one exponential for each, half of what the passes take.
// Returns false, with nothing of use written, where they must do it: for exponents so far apart
// that row sums would leave the range of floats, without rows, and with so many that a piece of all
// of them does not stay in cache.
bool potentials(const RaggedLogits& logits, double temperature, int64_t n_iterations,
                int64_t n_valid, float* prototype, float* row, void* workspace,
                std::size_t workspace_bytes, int threads);

}  // namespace franca::cpu
