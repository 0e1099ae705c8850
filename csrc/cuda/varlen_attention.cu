#include "franca/cuda/varlen_attention.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/attention_backward.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/primitives/launch.cuh"

namespace franca::cuda {
namespace {

// Units of 16 tokens up to which a sequence lies wholly in shared memory, by bucket; longer ones
// are streamed. The forward kernels hold that many scores in registers, for which the third bucket
// is too long where heads have 128 elements.
constexpr int kWholeUnits[] = {4, 10, 17};
constexpr int kWholeBuckets = 3;
template <int D>
constexpr int kWholeForward = D == 64 ? 3 : 2;

int units_of_length(int64_t length) {
  return static_cast<int>((length + kUnit - 1) / kUnit);
}

int bucket_of(int64_t length, int n_whole) {
  int bucket = 0;
  while (bucket < n_whole && units_of_length(length) > kWholeUnits[bucket]) ++bucket;
  return bucket;
}

// Warps that share the units of a sequence: as few idle turns as possible, then as few warps.
int warps_for(int units) {
  constexpr int kFewestWarps = 3;
  if (units <= kFewestWarps) return units;
  int best = kFewestWarps, fewest = units * kMostWarps;
  for (int warps = kFewestWarps; warps <= kMostWarps; ++warps) {
    const int idle = (units + warps - 1) / warps * warps - units;
    if (idle < fewest) {
      best = warps;
      fewest = idle;
    }
  }
  return best;
}

// One launch: sequences of one bucket.
struct Plan {
  int bucket;
  bool whole;
  int warps;
  int64_t columns;  // of a sequence in shared memory, or of the two buffers together
  int64_t n_blocks;
  Schedule schedule;

  LaunchShape shape(std::size_t bytes_per_column, std::size_t bytes_per_warp) const {
    return {dim3(static_cast<unsigned>(n_blocks)), static_cast<unsigned>(warps) * kWarpSize,
            static_cast<std::size_t>(columns) * bytes_per_column +
                static_cast<std::size_t>(warps) * bytes_per_warp};
  }
};

Plan make_plan(int bucket, bool whole, const SequenceRun* const* runs, int n_runs,
               int64_t n_heads) {
  Plan plan{};
  plan.bucket = bucket;
  plan.whole = whole;
  plan.schedule.n_runs = n_runs;
  plan.schedule.n_heads = static_cast<int>(n_heads);
  int longest = 0;
  for (int r = 0; r < n_runs; ++r) longest = std::max(longest, units_of_length(runs[r]->length));
  plan.warps = warps_for(longest);
  plan.columns = whole ? longest * kUnit : 2 * kStreamed;
  int64_t n_tasks = 0;
  for (int r = 0; r < n_runs; ++r) {
    const SequenceRun& run = *runs[r];
    const int units = units_of_length(run.length);
    const int tasks = whole ? 1 : (units + plan.warps - 1) / plan.warps;
    plan.schedule.run[r] = {static_cast<int>(run.first_token), static_cast<int>(run.length),
                            static_cast<int>(n_tasks), tasks};
    n_tasks += run.n_sequences * tasks;
  }
  plan.n_blocks = n_tasks * n_heads;
  if (plan.n_blocks > INT32_MAX) throw std::invalid_argument("too many sequences and heads");
  return plan;
}

// How many of the buckets [0, n_whole) fit the device's shared memory.
int fitting_buckets(int n_whole, std::size_t bytes_per_column, std::size_t bytes_per_warp) {
  const std::size_t most = most_shared_bytes();
  const auto fits = [&](int bucket) {
    return kWholeUnits[bucket] * kUnit * bytes_per_column + kMostWarps * bytes_per_warp <= most;
  };
  while (n_whole > 0 && !fits(n_whole - 1)) --n_whole;
  return n_whole;
}

// Calls body(plan) for each launch that the runs need; the first `n_whole` buckets are not
// streamed.
template <class Body>
void for_each_plan(const AttentionProblem& problem, int n_whole, Body body) {
  std::vector<const SequenceRun*> runs[kWholeBuckets + 1];
  for (int64_t r = 0; r < problem.n_runs; ++r) {
    runs[bucket_of(problem.runs[r].length, n_whole)].push_back(problem.runs + r);
  }
  for (int bucket = 0; bucket <= n_whole; ++bucket) {
    for (std::size_t first = 0; first < runs[bucket].size(); first += kMostRuns) {
      const std::size_t count = std::min<std::size_t>(kMostRuns, runs[bucket].size() - first);
      body(make_plan(bucket, bucket < n_whole, runs[bucket].data() + first, static_cast<int>(count),
                     problem.n_heads));
    }
  }
}

void check_problem(const AttentionProblem& p) {
  if (p.head_dim != 64 && p.head_dim != 128) {
    throw std::invalid_argument("head_dim " + std::to_string(p.head_dim) + "; accepted: 64, 128");
  }
  if (p.n_heads < 1 || p.n_heads > UINT16_MAX) throw std::invalid_argument("number of heads");
  if (p.n_tokens < 0 || p.n_tokens > INT32_MAX) throw std::invalid_argument("number of tokens");
  if (!std::isfinite(p.scale)) throw std::invalid_argument("scale is not finite");
  for (int64_t r = 0; r < p.n_runs; ++r) {
    const SequenceRun& run = p.runs[r];
    const bool inside = run.first_token >= 0 && run.length >= 1 && run.n_sequences >= 1 &&
                        run.length <= p.n_tokens && run.n_sequences <= p.n_tokens &&
                        run.first_token + run.n_sequences * run.length <= p.n_tokens;
    if (!inside) throw std::invalid_argument("a run of sequences reaches beyond the tokens");
  }
}

Packed packed(const PackedHeads& heads, DType dtype) {
  const int64_t size = size_of(dtype);
  const Packed view{static_cast<char*>(heads.data), heads.token_stride * size,
                    heads.head_stride * size};
  if (reinterpret_cast<std::uintptr_t>(view.data) % kPackBytes != 0 ||
      view.token_bytes % kPackBytes != 0 || view.head_bytes % kPackBytes != 0) {
    throw std::invalid_argument("heads must start at multiples of 16 bytes");
  }
  return view;
}

template <class Body>
void with_head_type(const AttentionProblem& problem, Body body) {
  const auto with_size = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (problem.head_dim == 64) return body(type, std::integral_constant<int, 64>{});
    return body(static_cast<T*>(nullptr), std::integral_constant<int, 128>{});
  };
  if (problem.dtype == DType::bfloat16) return with_size(static_cast<BFloat16*>(nullptr));
  if (problem.dtype == DType::float16) return with_size(static_cast<Float16*>(nullptr));
  throw std::invalid_argument("matrix instructions read bfloat16 and float16");
}

template <class T, int D>
void launch_forward(const Plan& plan, const ForwardParameters& p, void* stream) {
  const LaunchShape shape = plan.shape(2 * D * sizeof(T), 0);
  const Schedule& schedule = plan.schedule;
  if (!plan.whole) {
    launch(attention_forward_streamed_kernel<T, D>, shape, stream, p, schedule);
  } else if (plan.bucket == 0) {
    launch(attention_forward_kernel<T, D, kWholeUnits[0]>, shape, stream, p, schedule);
  } else if (plan.bucket == 1) {
    launch(attention_forward_kernel<T, D, kWholeUnits[1]>, shape, stream, p, schedule);
  } else if constexpr (kWholeForward<D> == 3) {
    launch(attention_forward_kernel<T, D, kWholeUnits[2]>, shape, stream, p, schedule);
  }
}

// Shared memory of the kernel of dK and dV, for each column and for each warp.
template <int D>
constexpr std::size_t kGradientBytes = 2 * D * sizeof(uint16_t) + sizeof(float2);
template <int D>
constexpr std::size_t kHeldBytes = ValueRows<D>::kPacks * kPackBytes;

template <class T, int D, bool whole>
void launch_backward(const Plan& plan, const BackwardParameters& p, void* stream) {
  launch(attention_query_gradient_kernel<T, D, whole>, plan.shape(2 * D * sizeof(T), 0), stream, p,
         plan.schedule);
  launch(attention_key_gradient_kernel<T, D, whole>, plan.shape(kGradientBytes<D>, kHeldBytes<D>),
         stream, p, plan.schedule);
}

}  // namespace

void attention_forward(const AttentionProblem& problem, const PackedHeads& out, float* lse,
                       void* stream) {
  check_problem(problem);
  const ForwardParameters p{packed(problem.q, problem.dtype),
                            packed(problem.k, problem.dtype),
                            packed(problem.v, problem.dtype),
                            packed(out, problem.dtype),
                            lse,
                            static_cast<float>(problem.scale * kLog2E)};
  with_head_type(problem, [&](auto* type, auto head_dim) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int D = decltype(head_dim)::value;
    for_each_plan(problem, fitting_buckets(kWholeForward<D>, 2 * D * sizeof(T), 0),
                  [&](const Plan& plan) { launch_forward<T, D>(plan, p, stream); });
  });
}

std::size_t attention_backward_workspace(const AttentionProblem& problem) {
  return static_cast<std::size_t>(problem.n_tokens * problem.n_heads) * sizeof(float2);
}

void attention_backward(const AttentionProblem& problem, const PackedHeads& grad_out,
                        const PackedHeads& out, const float* lse, const PackedHeads& dq,
                        const PackedHeads& dk, const PackedHeads& dv, void* workspace,
                        std::size_t workspace_bytes, void* stream) {
  check_problem(problem);
  if (workspace_bytes < attention_backward_workspace(problem)) {
    throw std::invalid_argument("workspace is too small");
  }
  const DType dtype = problem.dtype;
  const BackwardParameters p{packed(problem.q, dtype),
                             packed(problem.k, dtype),
                             packed(problem.v, dtype),
                             packed(out, dtype),
                             packed(grad_out, dtype),
                             packed(dq, dtype),
                             packed(dk, dtype),
                             packed(dv, dtype),
                             lse,
                             static_cast<float2*>(workspace),
                             problem.n_tokens,
                             static_cast<float>(problem.scale),
                             static_cast<float>(problem.scale * kLog2E)};
  with_head_type(problem, [&](auto* type, auto head_dim) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int D = decltype(head_dim)::value;
    const int n_whole = fitting_buckets(kWholeBuckets, kGradientBytes<D>, kHeldBytes<D>);
    for_each_plan(problem, n_whole, [&](const Plan& plan) {
      if (plan.whole) {
        launch_backward<T, D, true>(plan, p, stream);
      } else {
        launch_backward<T, D, false>(plan, p, stream);
      }
    });
  });
}

}  // namespace franca::cuda
