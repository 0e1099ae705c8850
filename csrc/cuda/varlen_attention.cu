#include "franca/cuda/varlen_attention.hpp"

#include <algorithm>
#include <cfloat>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/attention_forward.cuh"
#include "cuda/attention_whole_backward.cuh"
#include "cuda/primitives/launch.cuh"

namespace franca::cuda {
namespace {

using Runs = std::vector<const SequenceRun*>;

int units_of_length(int64_t length) {
  return static_cast<int>(divide_up(length, kUnit));
}

// Warps that share the row groups of a sequence which is streamed: as few idle turns as possible,
// then as many warps, for they share what is streamed.
int warps_for(int groups) {
  constexpr int kFewestWarps = 3;
  if (groups <= kFewestWarps) return groups;
  int best = kFewestWarps, fewest = groups * kMostWarps;
  for (int warps = kFewestWarps; warps <= kMostWarps; ++warps) {
    const int idle = divide_up(groups, warps) * warps - groups;
    if (idle <= fewest) {
      best = warps;
      fewest = idle;
    }
  }
  return best;
}

// Runs by a number that bucket_of(units) gives them, each with the longest sequences first: their
// blocks take longest, and short ones fill the gaps that they leave at the end.
template <class BucketOf>
std::vector<Runs> in_buckets(const AttentionProblem& problem, int n_buckets,
                             const BucketOf& bucket_of) {
  std::vector<Runs> buckets(n_buckets);
  for (int64_t r = 0; r < problem.n_runs; ++r) {
    buckets[bucket_of(units_of_length(problem.runs[r].length))].push_back(problem.runs + r);
  }
  for (Runs& runs : buckets) {
    std::stable_sort(runs.begin(), runs.end(), [](const SequenceRun* a, const SequenceRun* b) {
      return a->length > b->length;
    });
  }
  return buckets;
}

// Calls body(runs, longest), the latter in units, for as many runs at a time as a launch takes.
template <class Body>
void for_each_launch(const Runs& runs, const Body& body) {
  for (std::size_t first = 0; first < runs.size(); first += kMostRuns) {
    const std::size_t end = std::min<std::size_t>(first + kMostRuns, runs.size());
    body(Runs(runs.begin() + first, runs.begin() + end), units_of_length(runs[first]->length));
  }
}

struct Plan {
  Schedule schedule;
  unsigned n_blocks;
};

// share_of(units) is what a run of such sequences has as PackedRun::share.
template <class ShareOf>
Plan make_plan(const Runs& runs, int64_t n_heads, bool whole, const ShareOf& share_of) {
  Plan plan{};
  plan.schedule.n_runs = static_cast<int>(runs.size());
  plan.schedule.n_heads = static_cast<int>(n_heads);
  int64_t n_tasks = 0;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const SequenceRun& run = *runs[r];
    const int share = share_of(units_of_length(run.length));
    plan.schedule.run[r] = {static_cast<int>(run.first_token), static_cast<int>(run.length),
                            static_cast<int>(run.n_sequences), static_cast<int>(n_tasks), share};
    n_tasks += whole ? divide_up(run.n_sequences, share) : run.n_sequences * share;
  }
  if (n_tasks * n_heads > INT32_MAX) throw std::invalid_argument("too many sequences and heads");
  plan.n_blocks = static_cast<unsigned>(n_tasks * n_heads);
  return plan;
}

// Scales that float holds, times log2(e) too. A score of minus infinity stays one.
constexpr double kSmallestScale = FLT_MIN, kLargestScale = FLT_MAX / 2;

void check_problem(const AttentionProblem& p) {
  if (p.head_dim != 64 && p.head_dim != 128) {
    throw std::invalid_argument("head_dim " + std::to_string(p.head_dim) + "; accepted: 64, 128");
  }
  if (p.n_heads < 1 || p.n_heads > UINT16_MAX) throw std::invalid_argument("number of heads");
  if (p.n_tokens < 0 || p.n_tokens > INT32_MAX) throw std::invalid_argument("number of tokens");
  if (!(p.scale >= kSmallestScale && p.scale <= kLargestScale)) {
    throw std::invalid_argument("scale " + std::to_string(p.scale) +
                                "; accepted: a positive number in the range of float");
  }
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

// Shared memory of a warp's stage, and of a row of two tensors.
constexpr std::size_t kStageBytes = kStagePacks * kPackBytes;
template <int D>
constexpr std::size_t kRowBytes = 2 * kHeadPacks<D> * kPackBytes;

// Launches kernels that stream: a sequence has a block for every few groups of `group_units` units.
template <class Launch>
void launch_streamed(const Runs& all, int64_t n_heads, int group_units, const Launch& launch) {
  for_each_launch(all, [&](const Runs& runs, int longest) {
    const int warps = warps_for(divide_up(longest, group_units));
    launch(make_plan(runs, n_heads, false,
                     [&](int units) { return divide_up(units, group_units * warps); }),
           warps);
  });
}

LaunchShape shape_of(const Plan& plan, int warps, std::size_t shared_bytes) {
  return {dim3(plan.n_blocks), static_cast<unsigned>(warps) * kWarpSize, shared_bytes};
}

// Units of keys and values that a block of the forward kernel may have in shared memory.
template <int D>
int whole_forward_units() {
  // So that kForwardBlocks blocks fit a multiprocessor that has 228 KiB.
  constexpr std::size_t kWholeBytes = 74 * 1024;
  constexpr std::size_t kOther = kTaskBytes + kForwardWarps * kStageBytes;
  const std::size_t bytes = std::min(kWholeBytes, most_shared_bytes());
  return static_cast<int>((bytes - kOther) / (kUnit * kRowBytes<D>));
}

template <class T, int D>
void launch_forward(const AttentionProblem& problem, const ForwardParameters& p, void* stream) {
  const int most = whole_forward_units<D>();
  const auto buckets = in_buckets(problem, 2, [&](int units) { return units > most; });
  for_each_launch(buckets[0], [&](const Runs& runs, int) {
    const Plan plan =
        make_plan(runs, problem.n_heads, true, [&](int units) { return most / units; });
    int units = 0, items = 0;
    for (const SequenceRun* run : runs) {
      const int own = units_of_length(run->length);
      const auto sequences = static_cast<int>(std::min<int64_t>(run->n_sequences, most / own));
      units = std::max(units, sequences * own);
      items = std::max(items, sequences * divide_up(own, kRowUnits<D>));
    }
    const int warps = std::min(items, kForwardWarps);
    launch(attention_forward_kernel<T, D>,
           shape_of(plan, warps, kTaskBytes + warps * kStageBytes + units * kUnit * kRowBytes<D>),
           stream, p, plan.schedule);
  });
  launch_streamed(buckets[1], problem.n_heads, kRowUnits<D>, [&](const Plan& plan, int warps) {
    launch(attention_forward_streamed_kernel<T, D>,
           shape_of(plan, warps, kTaskBytes + warps * kStageBytes + 2 * kStreamed * kRowBytes<D>),
           stream, p, plan.schedule);
  });
}

// Buckets of sequences whose backward is one block's, by their units: of the first two, several
// blocks fit a multiprocessor at once (4 and 2, or 2 and 1, for 64 and 128 elements a head). The
// last one ends where a block has no room.
constexpr int kWholeBuckets = 3;
constexpr int kSmallUnits[kWholeBuckets - 1] = {4, 8};

template <int D>
int whole_backward_units() {
  int units = (kWholeWarps + 1) * kKeyUnits<D> - 1;
  while (units > 0 && WholeLayout<D>::bytes(units, kWholeWarps) > most_shared_bytes()) --units;
  return units;
}

template <class T, int D>
void launch_backward(const AttentionProblem& problem, const BackwardParameters& p, void* stream) {
  const int most = whole_backward_units<D>();
  const auto buckets = in_buckets(problem, kWholeBuckets + 1, [&](int units) {
    if (units > most) return kWholeBuckets;
    return units <= kSmallUnits[0] ? 0 : units <= kSmallUnits[1] ? 1 : 2;
  });
  for (int bucket = kWholeBuckets - 1; bucket >= 0; --bucket) {
    for_each_launch(buckets[bucket], [&](const Runs& runs, int longest) {
      const Plan plan = make_plan(runs, problem.n_heads, true, [](int) { return 1; });
      const int warps = std::min(divide_up(longest, kKeyUnits<D>), kWholeWarps);
      launch(attention_gradient_kernel<T, D>,
             shape_of(plan, warps, WholeLayout<D>::bytes(longest, warps)), stream, p,
             plan.schedule);
    });
  }
  launch_streamed(buckets[kWholeBuckets], problem.n_heads, 1, [&](const Plan& plan, int warps) {
    constexpr std::size_t kColumns = 2 * kStreamed;
    launch(attention_query_gradient_kernel<T, D>,
           shape_of(plan, warps, kColumns * kRowBytes<D> + warps * kStageBytes), stream, p,
           plan.schedule);
    launch(attention_key_gradient_kernel<T, D>,
           shape_of(plan, warps,
                    kColumns * (kRowBytes<D> + sizeof(float2)) +
                        warps * (kStageBytes + ValueRows<D>::kPacks * kPackBytes)),
           stream, p, plan.schedule);
  });
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
    launch_forward<T, decltype(head_dim)::value>(problem, p, stream);
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
    launch_backward<T, decltype(head_dim)::value>(problem, p, stream);
  });
}

}  // namespace franca::cuda
