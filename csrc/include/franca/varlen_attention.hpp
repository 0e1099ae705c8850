// Attention within each sequence of a packed batch, softmax(scale q k^T) v, not causal.
#pragma once

#include <cstdint>

#include "franca/views.hpp"

namespace franca {

// [tokens, heads, head_dim] with adjacent elements of a head. Strides count elements.
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

// Tokens outside the runs are neither read nor written.
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

namespace cpu {

// out as q; lse [tokens, heads], the natural logarithm of the softmax's denominator. All is
// computed in float and rounded once. Throws std::invalid_argument for sizes or pointers that
// cannot be.
void attention_forward(const AttentionProblem& problem, const PackedHeads& out, float* lse,
                       int threads);

// Gradients of q, k and v from that of out and from the lse that the forward gave.
void attention_backward(const AttentionProblem& problem, const PackedHeads& grad_out,
                        const float* lse, const PackedHeads& dq, const PackedHeads& dk,
                        const PackedHeads& dv, int threads);

}  // namespace cpu
}  // namespace franca
