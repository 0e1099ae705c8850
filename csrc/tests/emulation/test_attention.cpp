// The CUDA attention kernels on the emulated device against float64.
#include <cmath>
#include <stdexcept>

#include "attention_case.hpp"
#include "fibers.hpp"
#include "franca/cuda/varlen_attention.hpp"

namespace franca::testing {
namespace {

struct Device : AttentionMemory {
  using AttentionMemory::AttentionMemory;

  // Forward and backward on memory that holds NaN, for the tokens of the case in these runs.
  void run(const std::vector<SequenceRun>& runs) {
    const AttentionProblem given = problem(runs);
    Guarded<char> workspace(cuda::attention_backward_workspace(given));
    poison_results();
    cuda::attention_forward(given, out.view(0), lse.data(), nullptr);
    cuda::attention_backward(given, grad.view(0), out.view(0), lse.data(), gradients.view(0),
                             gradients.view(1), gradients.view(2), workspace.data(),
                             workspace.size(), nullptr);
    workspace.values();
  }
};

void test_attention(const AttentionCase& c, uint64_t seed) {
  set_context(c.name());
  emulation::set_seed(seed);
  Device device(c, seed);
  const AttentionReference reference(c, device.qkv, device.grad);
  const ExpectedAttention& e = reference.expected();
  device.run(c.runs);
  // Long sequences take the time of many short ones.
  if (c.n_tokens() < 260) {
    const std::vector<char> out = device.out.bits(), gradients = device.gradients.bits();
    device.run(c.runs);
    expect_same("output", out, device.out.bits());
    expect_same("gradients", gradients, device.gradients.bits());
  }
  // Probabilities and their gradients pass through the 16-bit type once, results a second time.
  const double epsilon = c.dtype == DType::bfloat16 ? 1.0 / 256 : 1.0 / 2048;
  expect_part("out", c, device.out, 0, e.out, 1.1 * epsilon);
  expect_lse(e, device.lse, 1e-5);
  expect_part("dq", c, device.gradients, 0, e.gradient[0], 3 * epsilon);
  expect_part("dk", c, device.gradients, 1, e.gradient[1], 3 * epsilon);
  expect_part("dv", c, device.gradients, 2, e.gradient[2], 2 * epsilon);
}

// What a sequence gives does not depend on those that share its block.
void test_packs(uint64_t seed) {
  const AttentionCase c{DType::bfloat16, 64, 1, runs_of({{5, 50}, {20, 3}}), 0, 0.4, 3.0};
  set_context("packs");
  emulation::set_seed(seed);
  Device device(c, seed);
  device.run(c.runs);
  const std::vector<char> out = device.out.bits(), gradients = device.gradients.bits();
  const std::vector<float> lse = device.lse.values();
  std::vector<SequenceRun> alone;
  for (const auto& run : c.runs) {
    for (int64_t s = 0; s < run.n_sequences; ++s) {
      alone.push_back({run.first_token + s * run.length, 1, run.length});
    }
  }
  device.run(alone);
  expect_same("output", out, device.out.bits());
  expect_same("lse", lse, device.lse.values());
  expect_same("gradients", gradients, device.gradients.bits());
}

template <class Change>
void expect_refused(const char* what, Change change) {
  const AttentionCase c{DType::bfloat16, 64, 1, runs_of({{1, 3}}), 1};
  set_context(std::string("refused: ") + what);
  Projection qkv(c, 3), out(c, 1);
  Guarded<float> lse(c.n_tokens());
  SequenceRun run = c.runs[0];
  AttentionProblem problem{qkv.view(0), qkv.view(1), qkv.view(2), &run,    1,
                           4,           1,           64,          c.dtype, 0.125};
  change(problem, run);
  bool refused = false;
  try {
    cuda::attention_forward(problem, out.view(0), lse.data(), nullptr);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  if (!refused) fail("was accepted");
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca;
  using namespace franca::testing;
  constexpr DType bf16 = DType::bfloat16, f16 = DType::float16;
  uint64_t seed = 1;
  // Lengths at and beside multiples of 16, several runs, packs of which the last may be ragged.
  test_attention({f16, 64, 2, runs_of({{1, 65}, {2, 31}, {1, 15}}), 3, 0.125, 1.5, 0.0, true},
                 seed++);
  test_attention({bf16, 64, 2, runs_of({{5, 50}, {1, 1}, {3, 17}, {1, 64}, {1, 16}})}, seed++);
  test_attention({f16, 128, 1, runs_of({{1, 113}, {9, 15}, {1, 33}})}, seed++);
  test_packs(seed++);
  // exp(-lse) is infinite.
  const AttentionCase infinite{bf16, 64, 2, runs_of({{1, 37}}), 0, 0.5, 1.5, 2.2};
  test_attention(infinite, seed++);
  // A device with less shared memory streams what does not fit: both passes, one, and none.
  emulation::device().max_shared_bytes = 40 * 1024;
  test_attention(infinite, seed++);
  test_attention({bf16, 64, 1, runs_of({{1, 129}, {1, 50}, {2, 16}})}, seed++);
  emulation::device().max_shared_bytes = 227 * 1024;
  // More runs than one launch takes.
  std::vector<std::pair<int64_t, int64_t>> many;
  for (int i = 0; i < 130; ++i) many.push_back({1, 1 + i % 2});
  test_attention({bf16, 64, 1, runs_of(many)}, seed++);
  // Tokens between the runs, and scores far from zero with a falling and a rising maximum.
  test_attention({bf16, 64, 1, {{2, 1, 20}, {25, 2, 70}}, 5, 1.0, 4.0}, seed++);
  test_attention({f16, 64, 1, runs_of({{1, 145}}), 0, 0.5, 4.0}, seed++);
  // The longest that fit, and longer ones.
  test_attention({bf16, 64, 1, runs_of({{1, 257}, {1, 33}})}, seed++);
  test_attention({f16, 64, 1, runs_of({{1, 272}})}, seed++);
  test_attention({bf16, 128, 1, runs_of({{1, 145}})}, seed++);
  test_attention({f16, 64, 1, runs_of({{1, 273}, {1, 40}}), 0, 0.5, 4.0}, seed++);
  test_attention({bf16, 64, 1, runs_of({{1, 300}})}, seed++);
  using Problem = AttentionProblem;
  using Run = SequenceRun;
  expect_refused("head_dim", [](Problem& p, Run&) { p.head_dim = 32; });
  expect_refused("dtype", [](Problem& p, Run&) { p.dtype = DType::float32; });
  expect_refused("scale", [](Problem& p, Run&) { p.scale = NAN; });
  expect_refused("scale of zero", [](Problem& p, Run&) { p.scale = 0.0; });
  expect_refused("too long", [](Problem&, Run& run) { run.length = 5; });
  expect_refused("too many", [](Problem&, Run& run) { run.n_sequences = 2; });
  expect_refused("empty", [](Problem&, Run& run) { run.length = 0; });
  expect_refused("before", [](Problem&, Run& run) { run.first_token = -1; });
  expect_refused("stride", [](Problem& p, Run&) { p.k.token_stride = 68; });
  expect_refused("address", [](Problem& p, Run&) { p.v.data = static_cast<char*>(p.v.data) + 2; });
  std::puts("attention on the emulated device: passed");
  return 0;
}
