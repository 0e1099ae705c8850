// Cross-entropy between student logits and Sinkhorn targets that are rebuilt from the teacher's
// logits and potentials on the fly.
//
//   q[m,k]  = sum_p exp(z[rows[m,p],k]/T + a[k] + b[rows[m,p]])
//   loss[h] = sum_m w[m] (P logsumexp_k(s[m,k]/t) - sum_k q[m,k] s[m,k]/t)
//   ds[m,k] = grad[h] w[m]/t (P softmax_k(s/t) - q[m,k])
#pragma once

#include <cstddef>
#include <cstdint>

#include "franca/views.hpp"

namespace franca::cpu {

struct ClusteringProblem {
  RaggedLogits student;         // s, [M, K_h]
  RaggedLogits teacher;         // z, [N, K_h]
  const float* prototype;       // a, [sum K]
  const float* row;             // b, [H, N]
  double student_temperature;   // t
  double teacher_temperature;   // T
  const int64_t* teacher_rows;  // [M, P], teacher rows that each student row meets
  int64_t n_targets;            // P
  const float* weights;         // w, [M]
};

// Bytes of workspace that the forward pass needs.
std::size_t clustering_forward_workspace(int64_t n_heads, int64_t n_student_rows);

// loss [H] and lse [H, M] = logsumexp_k(s/t).
void clustering_forward(const ClusteringProblem& problem, float* loss, float* lse, void* workspace,
                        std::size_t workspace_bytes, int threads);

// Gradient of the student logits in their dtype. `gradient` may be the memory of the student
// itself. Throws std::invalid_argument for teacher rows outside [0, N).
void clustering_backward(const ClusteringProblem& problem, const float* grad_loss, const float* lse,
                         const Head* gradient, int threads);

}  // namespace franca::cpu
