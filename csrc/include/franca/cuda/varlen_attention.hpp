// Attention over packed sequences on a CUDA device: bfloat16 or float16, 64 or 128 elements a head;
// addresses and strides of packed heads are multiples of 16 bytes. What holds for pointers and
// errors is said in franca/cuda/sinkhorn.hpp.
#pragma once

#include <cstddef>

#include "franca/varlen_attention.hpp"

namespace franca::cuda {

// out as q; lse [tokens, heads], the natural logarithm of the softmax's denominator.
void attention_forward(const AttentionProblem& problem, const PackedHeads& out, float* lse,
                       void* stream);

// Gradients of q, k and v from that of out and from what the forward gave.
std::size_t attention_backward_workspace(const AttentionProblem& problem);
void attention_backward(const AttentionProblem& problem, const PackedHeads& grad_out,
                        const PackedHeads& out, const float* lse, const PackedHeads& dq,
                        const PackedHeads& dk, const PackedHeads& dv, void* workspace,
                        std::size_t workspace_bytes, void* stream);

}  // namespace franca::cuda
