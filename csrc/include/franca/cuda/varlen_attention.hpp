// Attention within each sequence of a packed batch, softmax(scale q k^T) v, on a CUDA device:
// bfloat16 or float16, 64 or 128 elements a head, not causal. What holds for pointers and errors is
// said in franca/cuda/sinkhorn.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "franca/views.hpp"

namespace franca::cuda {

// [tokens, heads, head_dim] with adjacent elements of a head. The address and the strides, which
// count elements, are multiples of 16 bytes.
struct PackedHeads {
  void* data;
  int64_t token_stride;
  int64_t head_stride;
};

// Sequences of one length that follow each other.
struct SequenceRun {
  int64_t first_token;
  int64_t n_sequences;
  int64_t length;
};

struct AttentionProblem {
  PackedHeads q, k, v;
  const SequenceRun* runs;
  int64_t n_runs;
  int64_t n_tokens;
  int64_t n_heads;
  int64_t head_dim;
  DType dtype;
  double scale;  // positive
};

// out as q; lse [tokens, heads], the natural logarithm of the softmax's denominator. Tokens outside
// the runs are neither read nor written.
void attention_forward(const AttentionProblem& problem, const PackedHeads& out, float* lse,
                       void* stream);

// Gradients of q, k and v from that of out and from what the forward gave.
std::size_t attention_backward_workspace(const AttentionProblem& problem);
void attention_backward(const AttentionProblem& problem, const PackedHeads& grad_out,
                        const PackedHeads& out, const float* lse, const PackedHeads& dq,
                        const PackedHeads& dk, const PackedHeads& dv, void* workspace,
                        std::size_t workspace_bytes, void* stream);

}  // namespace franca::cuda
