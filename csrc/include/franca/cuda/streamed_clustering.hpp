// Operators on scores z[n,k] = scale[k] <x[n], v[k]> on a CUDA device, with tensor cores: factors
// are bfloat16 or float16, sums are float32. Nothing of the size of the scores is stored but what
// prototype_scores and streamed_gradient are asked for. What holds for pointers and errors is said
// in franca/cuda/sinkhorn.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "franca/views.hpp"

namespace franca::cuda {

// One entry of each list per head. `columns` of both matrices is the length of the products.
struct ScoreSide {
  const Head* features;         // [N, C]
  const Head* prototypes;       // [K, C]
  const int64_t* n_prototypes;  // K
  const float* const* scales;   // [K]; null entries: 1
  int64_t n_heads;
  int64_t n_rows;  // N
  DType dtype;
  // Four warps at a time multiply where the device can do that (wgmma); without, each by itself.
  bool warpgroups = true;
};

// Whether the device, and the code that was built for it, can multiply by warpgroups.
bool offers_warpgroups();

// out[h] [N, K], in the type of the factors.
void prototype_scores(const ScoreSide& side, const Head* out, void* stream);

std::size_t streamed_column_workspace(const ScoreSide& side, int64_t n_valid);
void streamed_column_logsumexp(const ScoreSide& side, double temperature, int64_t n_valid,
                               float* maximum, float* total, void* workspace,
                               std::size_t workspace_bytes, void* stream);

// mass may be null.
std::size_t streamed_row_step_workspace(const ScoreSide& side, int64_t n_valid);
void streamed_row_step(const ScoreSide& side, double temperature, const float* prototype,
                       int64_t n_valid, float* row, float* mass, void* workspace,
                       std::size_t workspace_bytes, void* stream);

// As ClusteringProblem, with factors for logits. Both sides have the same prototypes per head.
struct StreamedProblem {
  ScoreSide student;
  ScoreSide teacher;
  const float* prototype;
  const float* row;
  double student_temperature;
  double teacher_temperature;
  const int64_t* teacher_rows;
  int64_t n_targets;
  const float* weights;
};

std::size_t streamed_forward_workspace(const StreamedProblem& problem);
void streamed_forward(const StreamedProblem& problem, float* loss, float* lse, void* workspace,
                      std::size_t workspace_bytes, void* stream);

// Some columns of one head, `first` to first + columns: out [M, columns], the gradient of the
// products <x, v>, which is that of the scores times the scales, in the type of the factors; and
// scale_gradient [columns], that of the scales. grad_loss [H] and lse [H, M] are of all heads.
struct ColumnsOfHead {
  int64_t head;
  int64_t first;
  int64_t columns;
};
std::size_t streamed_gradient_workspace(int64_t n_rows, int64_t columns);
void streamed_gradient(const StreamedProblem& problem, const ColumnsOfHead& part,
                       const float* grad_loss, const float* lse, void* out, int64_t out_stride,
                       float* scale_gradient, void* workspace, std::size_t workspace_bytes,
                       void* stream);

}  // namespace franca::cuda
