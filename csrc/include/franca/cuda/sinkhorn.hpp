// Half-steps of Sinkhorn-Knopp on potentials, on a CUDA device; the equations are those of
// franca/sinkhorn.hpp.
//
// Pointers are device memory, except the list of heads itself. Functions that end in _workspace say
// how many bytes of device memory the call of the same arguments needs. Nothing synchronises with
// the host. Repeated calls give the same bits on the same device. std::invalid_argument for sizes
// that cannot be meant, std::runtime_error when a launch fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "franca/views.hpp"

namespace franca::cuda {

// Whether the core was built for the current device's architecture.
bool has_code();

std::size_t column_logsumexp_workspace(const RaggedLogits& logits, int64_t n_valid);
void column_logsumexp(const RaggedLogits& logits, double temperature, int64_t n_valid,
                      float* maximum, float* total, void* workspace, std::size_t workspace_bytes,
                      void* stream);

// mass may be null.
std::size_t row_step_workspace(const RaggedLogits& logits, int64_t n_valid, bool with_mass);
void row_step(const RaggedLogits& logits, double temperature, const float* prototype,
              int64_t n_valid, float* row, float* mass, void* workspace,
              std::size_t workspace_bytes, void* stream);

std::size_t assignments_workspace(const RaggedLogits& logits);
void assignments(const RaggedLogits& logits, double temperature, const float* prototype,
                 int64_t n_valid, float* const* out, void* workspace, std::size_t workspace_bytes,
                 void* stream);

// All iterations at once, for a problem on one device, without a launch between the passes that
// only adjusts potentials. Up to 64 rows of 16-bit logits are read once
// in all, or once an iteration where their blocks cannot all run at the same time.
std::size_t potentials_workspace(const RaggedLogits& logits, int64_t n_valid);
void potentials(const RaggedLogits& logits, double temperature, int64_t n_iterations,
                int64_t n_valid, float* prototype, float* row, void* workspace,
                std::size_t workspace_bytes, void* stream);

// How `row_step` with masses spreads the rows of these logits over this device.
struct RowSharing {
  int threads;              // of a block
  int cluster;              // blocks that run together; 0: the device cannot hold a row on chip
  int n_clusters;           // of all heads
  std::vector<int> groups;  // rows at a time, of each head
};
RowSharing row_sharing(const RaggedLogits& logits, int64_t n_valid);

}  // namespace franca::cuda
