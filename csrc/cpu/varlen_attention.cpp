#include "franca/varlen_attention.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/tile_kernels.hpp"
#include "cpu/tiles.hpp"

namespace franca::cpu {
namespace {

void check(const AttentionProblem& problem) {
  const int code = static_cast<int>(problem.dtype);
  if (code < 0 || code >= kDTypes) throw std::invalid_argument("q: unknown dtype code");
  if (problem.n_heads < 1 || problem.head_dim < 1 || problem.n_runs < 0) {
    throw std::invalid_argument("q: negative size, or none");
  }
  if (!(problem.scale > 0.0)) throw std::invalid_argument("scale: not positive");
  for (int64_t i = 0; i < problem.n_runs; ++i) {
    const SequenceRun& run = problem.runs[i];
    if (run.first_token < 0 || run.n_sequences < 1 || run.length < 1 ||
        run.first_token + run.n_sequences * run.length > problem.n_tokens) {
      throw std::invalid_argument("runs[" + std::to_string(i) + "]: not within the tokens");
    }
  }
}

void check_heads(const AttentionProblem& problem, const PackedHeads& heads, const char* name) {
  check_pointer(heads.data, problem.n_tokens, name);
  if (heads.token_stride < 0 || heads.head_stride < 0) {
    throw std::invalid_argument(std::string(name) + ": negative stride");
  }
}

HeadRows rows_of(const PackedHeads& heads, DType dtype, int64_t token, int64_t head) {
  const int64_t offset = token * heads.token_stride + head * heads.head_stride;
  return {static_cast<char*>(heads.data) + offset * size_of(dtype), heads.token_stride};
}

// Calls body(token, head, what both directions have in common, scratch) for every head of every
// sequence, which begins with the token. A task is all heads of a sequence, which lie side by side;
// or one head where there are few sequences.
template <class Body>
void for_heads(const AttentionProblem& problem, float* lse, int threads, const Body& body) {
  std::vector<int64_t> starts{0};
  int64_t longest = 0, n_scores = 0;
  for (int64_t i = 0; i < problem.n_runs; ++i) {
    const SequenceRun& run = problem.runs[i];
    starts.push_back(starts.back() + run.n_sequences);
    longest = std::max(longest, run.length);
    n_scores += run.n_sequences * run.length * run.length * problem.n_heads;
  }
  const int64_t n_sequences = starts.back(), n_heads = problem.n_heads;
  const int64_t heads_of_task = n_sequences < 8 * int64_t{threads} ? 1 : n_heads;
  const int64_t tasks_of_sequence = n_heads / heads_of_task;
  const int64_t n_tasks = n_sequences * tasks_of_sequence;
  if (n_tasks == 0) return;
  const int useful = static_cast<int>(
      std::min<int64_t>(useful_threads(threads, n_scores * problem.head_dim), n_tasks));
  const int64_t floats = attention_scratch(longest, problem.head_dim);
  const std::unique_ptr<float[]> scratch(new float[useful * floats]);
  run_on_workers(n_tasks, useful, [&](int64_t task, int worker) {
    const int64_t sequence = task / tasks_of_sequence;
    const int64_t first_head = task % tasks_of_sequence * heads_of_task;
    const auto next = std::upper_bound(starts.begin(), starts.end(), sequence);
    const int64_t i = next - starts.begin() - 1;
    const SequenceRun& run = problem.runs[i];
    const int64_t token = run.first_token + (sequence - starts[i]) * run.length;
    for (int64_t h = first_head; h < first_head + heads_of_task; ++h) {
      AttentionHead head{};
      head.length = run.length;
      head.dim = problem.head_dim;
      head.scale = static_cast<float>(problem.scale);
      head.q = rows_of(problem.q, problem.dtype, token, h);
      head.k = rows_of(problem.k, problem.dtype, token, h);
      head.v = rows_of(problem.v, problem.dtype, token, h);
      head.lse = lse + token * n_heads + h;
      head.lse_stride = n_heads;
      body(token, h, head, scratch.get() + worker * floats);
    }
  });
}

void check_inputs(const AttentionProblem& problem, const float* lse) {
  check(problem);
  check_heads(problem, problem.q, "q");
  check_heads(problem, problem.k, "k");
  check_heads(problem, problem.v, "v");
  check_pointer(lse, problem.n_tokens, "lse");
}

}  // namespace

void attention_forward(const AttentionProblem& problem, const PackedHeads& out, float* lse,
                       int threads) {
  check_inputs(problem, lse);
  check_heads(problem, out, "out");
  const DType dtype = problem.dtype;
  const auto kernel = tile_kernels().attention_forward[static_cast<int>(dtype)];
  const auto body = [&](int64_t token, int64_t h, AttentionHead& head, float* scratch) {
    head.out = rows_of(out, dtype, token, h);
    kernel(head, scratch);
  };
  for_heads(problem, lse, threads, body);
}

void attention_backward(const AttentionProblem& problem, const PackedHeads& grad_out,
                        const float* lse, const PackedHeads& dq, const PackedHeads& dk,
                        const PackedHeads& dv, int threads) {
  check_inputs(problem, lse);
  check_heads(problem, grad_out, "grad_out");
  check_heads(problem, dq, "dq");
  check_heads(problem, dk, "dk");
  check_heads(problem, dv, "dv");
  const DType dtype = problem.dtype;
  const auto kernel = tile_kernels().attention_backward[static_cast<int>(dtype)];
  const auto body = [&](int64_t token, int64_t h, AttentionHead& head, float* scratch) {
    head.grad_out = rows_of(grad_out, dtype, token, h);
    head.dq = rows_of(dq, dtype, token, h);
    head.dk = rows_of(dk, dtype, token, h);
    head.dv = rows_of(dv, dtype, token, h);
    kernel(head, scratch);
  };
  for_heads(problem, const_cast<float*>(lse), threads, body);
}

}  // namespace franca::cpu
