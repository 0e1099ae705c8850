// Clustering cross-entropy on a CUDA device; the equations are those of
// franca/clustering_cross_entropy.hpp, what holds for pointers and errors is said in
// franca/cuda/sinkhorn.hpp. Teacher rows outside [0, N) give NaN.
#pragma once

#include "franca/clustering_cross_entropy.hpp"

namespace franca::cuda {

using cpu::ClusteringProblem;

std::size_t clustering_forward_workspace(const ClusteringProblem& problem);

// loss [H] and lse [H, M] = logsumexp_k(s/t).
void clustering_forward(const ClusteringProblem& problem, float* loss, float* lse, void* workspace,
                        std::size_t workspace_bytes, void* stream);

// Gradient of the student logits in their dtype. `gradient` may be the memory of the student.
void clustering_backward(const ClusteringProblem& problem, const float* grad_loss, const float* lse,
                         const Head* gradient, void* stream);

}  // namespace franca::cuda
