// The CUDA attention kernels on the emulated device against float64.
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "fibers.hpp"
#include "franca/cuda/varlen_attention.hpp"
#include "testing.hpp"

namespace franca::testing {
namespace {

struct Case {
  DType dtype;
  int64_t head_dim;
  int64_t n_heads;
  std::vector<cuda::SequenceRun> runs;  // in order, with gaps where tokens take no part
  int64_t spare_tokens = 0;             // after the last run
  double scale = 0.125;
  double spread = 1.5;       // of queries and keys
  double offset = 0.0;       // added to queries and taken from keys: all scores become negative
  bool heads_first = false;  // in memory; otherwise tokens

  int64_t n_tokens() const {
    const cuda::SequenceRun& last = runs.back();
    return last.first_token + last.n_sequences * last.length + spare_tokens;
  }
  std::string name() const {
    std::string text = "attention: dtype " + std::to_string(static_cast<int>(dtype)) +
                       ", head_dim " + std::to_string(head_dim) + ", lengths";
    for (const auto& run : runs) text += " " + std::to_string(run.length);
    return text;
  }
};

std::vector<cuda::SequenceRun> runs_of(const std::vector<std::pair<int64_t, int64_t>>& counts) {
  std::vector<cuda::SequenceRun> runs;
  int64_t first = 0;
  for (const auto& [n_sequences, length] : counts) {
    runs.push_back({first, n_sequences, length});
    first += n_sequences * length;
  }
  return runs;
}

// [tokens, parts, heads, head_dim] in 16 bits, as a projection leaves it, or with the heads first.
class Projection {
 public:
  Projection(const Case& c, int64_t parts)
      : c_(c), parts_(parts), memory_(c.n_tokens() * parts * c.n_heads * c.head_dim) {}

  void fill(int64_t part, double offset, double spread, uint64_t seed) {
    std::mt19937_64 generator(seed);
    std::uniform_real_distribution<double> uniform(offset - spread, offset + spread);
    for (int64_t t = 0; t < c_.n_tokens(); ++t) {
      for (int64_t i = 0; i < c_.n_heads * c_.head_dim; ++i) {
        const int64_t at = index(t, part, i / c_.head_dim, i % c_.head_dim);
        store(memory_.data(), at, uniform(generator), c_.dtype);
      }
    }
  }
  double at(int64_t token, int64_t part, int64_t head, int64_t i) const {
    return fetch(memory_.data(), index(token, part, head, i), c_.dtype);
  }
  cuda::PackedHeads view(int64_t part) const {
    uint16_t* data = memory_.data() + index(0, part, 0, 0);
    return {data, index(1, 0, 0, 0), index(0, 0, 1, 0)};
  }
  std::vector<uint16_t> bits() const { return memory_.values(); }
  void poison() { memory_.poison(); }

 private:
  int64_t index(int64_t token, int64_t part, int64_t head, int64_t i) const {
    if (c_.heads_first) {
      return ((head * c_.n_tokens() + token) * parts_ + part) * c_.head_dim + i;
    }
    return ((token * parts_ + part) * c_.n_heads + head) * c_.head_dim + i;
  }
  const Case& c_;
  int64_t parts_;
  Guarded<uint16_t> memory_;
};

// Values in the order token, head, element; NaN where tokens take no part.
struct Expected {
  std::vector<double> out, lse, gradient[3];
};

double dot(const double* a, const double* b, int64_t n) {
  return std::inner_product(a, a + n, b, 0.0);
}

class Reference {
 public:
  Reference(const Case& c, const Projection& qkv, const Projection& grad) : c_(c) {
    const int64_t size = c.n_tokens() * c.n_heads * c.head_dim;
    for (int part = 0; part < 4; ++part) {
      const Projection& from = part < 3 ? qkv : grad;
      for (int64_t t = 0; t < c.n_tokens(); ++t) {
        for (int64_t h = 0; h < c.n_heads; ++h) {
          for (int64_t i = 0; i < c.head_dim; ++i) {
            in_[part].push_back(from.at(t, part % 3, h, i));
          }
        }
      }
    }
    e_.out.assign(size, NAN);
    e_.lse.assign(c.n_tokens() * c.n_heads, NAN);
    for (auto& gradient : e_.gradient) gradient.assign(size, NAN);
    for (const auto& run : c.runs) {
      for (int64_t s = 0; s < run.n_sequences; ++s) {
        for (int64_t h = 0; h < c.n_heads; ++h) {
          sequence(run.first_token + s * run.length, run.length, h);
        }
      }
    }
  }
  const Expected& expected() const { return e_; }

 private:
  int64_t at(int64_t token, int64_t head) const {
    return (token * c_.n_heads + head) * c_.head_dim;
  }

  void sequence(int64_t first, int64_t length, int64_t h) {
    const int64_t d = c_.head_dim;
    const auto row = [&](int part, int64_t i) { return in_[part].data() + at(first + i, h); };
    for (int64_t i = 0; i < length; ++i) {
      for (auto& g : e_.gradient) std::fill_n(g.data() + at(first + i, h), d, 0.0);
    }
    for (int64_t i = 0; i < length; ++i) {
      std::vector<double> p(length);
      double largest = -HUGE_VAL, sum = 0;
      for (int64_t j = 0; j < length; ++j) {
        p[j] = c_.scale * dot(row(0, i), row(1, j), d);
        largest = std::max(largest, p[j]);
      }
      for (double x : p) sum += std::exp(x - largest);
      const double lse = largest + std::log(sum);
      e_.lse[(first + i) * c_.n_heads + h] = lse;
      double* out = e_.out.data() + at(first + i, h);
      std::fill_n(out, d, 0.0);
      for (int64_t j = 0; j < length; ++j) {
        p[j] = std::exp(p[j] - lse);
        for (int64_t x = 0; x < d; ++x) out[x] += p[j] * row(2, j)[x];
      }
      const double delta = dot(out, row(3, i), d);
      for (int64_t j = 0; j < length; ++j) {
        const double ds = p[j] * (dot(row(3, i), row(2, j), d) - delta) * c_.scale;
        for (int64_t x = 0; x < d; ++x) {
          e_.gradient[0][at(first + i, h) + x] += ds * row(1, j)[x];
          e_.gradient[1][at(first + j, h) + x] += ds * row(0, i)[x];
          e_.gradient[2][at(first + j, h) + x] += p[j] * row(3, i)[x];
        }
      }
    }
  }

  const Case& c_;
  std::vector<double> in_[4];
  Expected e_;
};

// Within `share` of the largest expected value; untouched where nothing is expected.
void expect_part(const char* what, const Case& c, const Projection& values, int64_t part,
                 const std::vector<double>& expected, double share) {
  std::vector<float> own;
  std::vector<double> wanted;
  double largest = 0;
  std::size_t n = 0;
  for (int64_t t = 0; t < c.n_tokens(); ++t) {
    for (int64_t h = 0; h < c.n_heads; ++h) {
      for (int64_t i = 0; i < c.head_dim; ++i, ++n) {
        const double value = values.at(t, part, h, i);
        if (std::isnan(expected[n])) {
          if (!std::isnan(value)) fail(std::string(what) + ": a token outside was written");
          continue;
        }
        own.push_back(static_cast<float>(value));
        wanted.push_back(expected[n]);
        largest = std::max(largest, std::fabs(expected[n]));
      }
    }
  }
  expect_close(what, own, wanted, 0, share * largest + 1e-6);
}

// A case in memory, with what the kernels make of it.
class Device {
 public:
  Device(const Case& c, uint64_t seed)
      : qkv(c, 3), grad(c, 1), out(c, 1), gradients(c, 3), lse(c.n_tokens() * c.n_heads), c_(c) {
    for (int64_t part = 0; part < 3; ++part) {
      const double offset = part == 2 ? 0.0 : part == 0 ? c.offset : -c.offset;
      qkv.fill(part, offset, part < 2 ? c.spread : 1.0, 3 * seed + part);
    }
    grad.fill(0, 0.0, 1.0, seed + 100);
  }

  // Forward and backward on memory that holds NaN, for the tokens of the case in these runs.
  void run(const std::vector<cuda::SequenceRun>& runs) {
    const cuda::AttentionProblem problem{
        qkv.view(0),   qkv.view(1), qkv.view(2), runs.data(), static_cast<int64_t>(runs.size()),
        c_.n_tokens(), c_.n_heads,  c_.head_dim, c_.dtype,    c_.scale};
    Guarded<char> workspace(cuda::attention_backward_workspace(problem));
    out.poison();
    lse.poison();
    gradients.poison();
    cuda::attention_forward(problem, out.view(0), lse.data(), nullptr);
    cuda::attention_backward(problem, grad.view(0), out.view(0), lse.data(), gradients.view(0),
                             gradients.view(1), gradients.view(2), workspace.data(),
                             workspace.size(), nullptr);
    workspace.values();
  }

  Projection qkv, grad, out, gradients;
  Guarded<float> lse;

 private:
  const Case& c_;
};

void test_attention(const Case& c, uint64_t seed) {
  set_context(c.name());
  emulation::set_seed(seed);
  Device device(c, seed);
  const Reference reference(c, device.qkv, device.grad);
  const Expected& e = reference.expected();
  device.run(c.runs);
  // Long sequences take the time of many short ones.
  if (c.n_tokens() < 260) {
    const std::vector<uint16_t> out = device.out.bits(), gradients = device.gradients.bits();
    device.run(c.runs);
    expect_same("output", out, device.out.bits());
    expect_same("gradients", gradients, device.gradients.bits());
  }
  // Probabilities and their gradients pass through the 16-bit type once, results a second time.
  const double epsilon = c.dtype == DType::bfloat16 ? 1.0 / 256 : 1.0 / 2048;
  expect_part("out", c, device.out, 0, e.out, 1.1 * epsilon);
  std::vector<float> own_lse;
  std::vector<double> expected_lse;
  for (std::size_t i = 0; i < e.lse.size(); ++i) {
    if (std::isnan(e.lse[i])) continue;
    own_lse.push_back(device.lse.values()[i]);
    expected_lse.push_back(e.lse[i]);
  }
  expect_close("lse", own_lse, expected_lse, 1e-6, 1e-5);
  expect_part("dq", c, device.gradients, 0, e.gradient[0], 3 * epsilon);
  expect_part("dk", c, device.gradients, 1, e.gradient[1], 3 * epsilon);
  expect_part("dv", c, device.gradients, 2, e.gradient[2], 2 * epsilon);
}

// What a sequence gives does not depend on those that share its block.
void test_packs(uint64_t seed) {
  const Case c{DType::bfloat16, 64, 1, runs_of({{5, 50}, {20, 3}}), 0, 0.4, 3.0};
  set_context("packs");
  emulation::set_seed(seed);
  Device device(c, seed);
  device.run(c.runs);
  const std::vector<uint16_t> out = device.out.bits(), gradients = device.gradients.bits();
  const std::vector<float> lse = device.lse.values();
  std::vector<cuda::SequenceRun> alone;
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
  const Case c{DType::bfloat16, 64, 1, runs_of({{1, 3}}), 1};
  set_context(std::string("refused: ") + what);
  Projection qkv(c, 3), out(c, 1);
  Guarded<float> lse(c.n_tokens());
  cuda::SequenceRun run = c.runs[0];
  cuda::AttentionProblem problem{qkv.view(0), qkv.view(1), qkv.view(2), &run,    1,
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
  const Case infinite{bf16, 64, 2, runs_of({{1, 37}}), 0, 0.5, 1.5, 2.2};
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
  using Problem = cuda::AttentionProblem;
  using Run = cuda::SequenceRun;
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
