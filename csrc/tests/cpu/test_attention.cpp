// Packed attention on a CPU against float64.
#include <cmath>

#include "attention_case.hpp"
#include "cpu_testing.hpp"

namespace franca::testing {
namespace {

struct Attention : AttentionMemory {
  Attention(const AttentionCase& c, uint64_t seed) : AttentionMemory(c, seed), runs(c.runs) {}

  // Forward and backward on memory that holds NaN.
  void run(int threads) {
    const AttentionProblem given = problem(runs);
    poison_results();
    cpu::attention_forward(given, out.view(0), lse.data(), threads);
    cpu::attention_backward(given, grad.view(0), lse.data(), gradients.view(0), gradients.view(1),
                            gradients.view(2), threads);
  }

  const std::vector<SequenceRun>& runs;
};

std::vector<float> as_floats(const std::vector<char>& bits) {
  return {bits.begin(), bits.end()};
}

void test_case(const AttentionCase& c, uint64_t seed) {
  Attention attention(c, seed);
  const AttentionReference reference(c, attention.qkv, attention.grad);
  const ExpectedAttention& e = reference.expected();
  // One rounding of the result in 16 bits; in float, sums of as many terms as a head and a sequence
  // have; and what rounding does to the largest score.
  const double result = c.dtype == DType::bfloat16  ? 1.0 / 256
                        : c.dtype == DType::float16 ? 1.0 / 2048
                                                    : 2e-6;
  const double of_scores = c.scale * c.spread * c.spread * static_cast<double>(c.head_dim) * 6e-8;
  const double rounding = result + of_scores;
  for_isas(c.name(), [&](int threads) {
    attention.run(threads);
    expect_part("out", c, attention.out, 0, e.out, rounding);
    expect_lse(e, attention.lse, 1e-6 + of_scores);
    for (int64_t part = 0; part < 3; ++part) {
      expect_part("a gradient", c, attention.gradients, part, e.gradient[part], rounding);
    }
    return std::vector<std::vector<float>>{attention.lse.values(), as_floats(attention.out.bits()),
                                           as_floats(attention.gradients.bits())};
  });
}

// A key that is no number is known to every query of its sequence, forward and backward.
void test_no_number() {
  const AttentionCase c{DType::float32, 16, 1, runs_of({{1, 5}, {1, 3}})};
  Attention attention(c, 1);
  store(attention.qkv.view(1).data, 2 * attention.qkv.view(1).token_stride, NAN, c.dtype);
  for_isas("a key that is no number", [&](int threads) {
    attention.run(threads);
    for (int64_t t = 0; t < 8; ++t) {
      const double dv = attention.gradients.at(t, 2, 0, 0);
      if (std::isnan(attention.lse[t]) != (t < 5)) fail("lse of token " + std::to_string(t));
      if (std::isnan(dv) != (t < 5)) fail("gradient of value " + std::to_string(t));
    }
    return std::vector<std::vector<float>>{};
  });
}

void test_refusals() {
  const AttentionCase c{DType::float32, 4, 1, runs_of({{1, 3}}), 1};
  Attention a(c, 1);
  const auto refused = [&](const char* what, auto change) {
    AttentionProblem problem = a.problem(c.runs);
    SequenceRun run = c.runs[0];
    problem.runs = &run;
    change(problem, run);
    expect_refusal(what, [&] { cpu::attention_forward(problem, a.out.view(0), a.lse.data(), 1); });
    expect_refusal(what, [&] {
      cpu::attention_backward(problem, a.grad.view(0), a.lse.data(), a.gradients.view(0),
                              a.gradients.view(1), a.gradients.view(2), 1);
    });
  };
  using Problem = AttentionProblem;
  using Run = SequenceRun;
  refused("an unknown dtype", [](Problem& p, Run&) { p.dtype = static_cast<DType>(3); });
  refused("a scale that is no number", [](Problem& p, Run&) { p.scale = NAN; });
  refused("no elements", [](Problem& p, Run&) { p.head_dim = 0; });
  refused("too long", [](Problem&, Run& run) { run.length = 5; });
  refused("too many", [](Problem&, Run& run) { run.n_sequences = 2; });
  refused("empty", [](Problem&, Run& run) { run.length = 0; });
  refused("before the first token", [](Problem&, Run& run) { run.first_token = -1; });
  refused("a negative stride", [](Problem& p, Run&) { p.k.token_stride = -4; });
  refused("no memory", [](Problem& p, Run&) { p.v.data = nullptr; });
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca;
  using namespace franca::testing;
  uint64_t seed = 1;
  for (DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    // Lengths and widths at and beside multiples of a vector, of a tile and of a block of queries.
    test_case({dtype, 16, 2, runs_of({{3, 17}, {5, 5}, {1, 1}})}, seed++);
    test_case({dtype, 64, 1, runs_of({{1, 50}, {1, 16}, {1, 65}})}, seed++);
    test_case({dtype, 1, 3, runs_of({{1, 32}, {1, 33}, {1, 31}}), 2}, seed++);
    test_case({dtype, 33, 1, runs_of({{2, 7}, {1, 64}}), 0, 0.2, 1.5, 0.0, true}, seed++);
    test_case({dtype, 24, 2, {{2, 1, 20}, {25, 2, 70}}, 5}, seed++);
    test_case({dtype, 128, 1, runs_of({{1, 257}})}, seed++);
    // Scores far apart.
    test_case({dtype, 16, 1, runs_of({{4, 19}}), 0, 1.0, 8.0}, seed++);
  }
  test_no_number();
  test_refusals();
}
