// Packed attention in memory, and what it must give in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "franca/varlen_attention.hpp"
#include "testing.hpp"

namespace franca::testing {

struct AttentionCase {
  DType dtype;
  int64_t head_dim;
  int64_t n_heads;
  std::vector<SequenceRun> runs;  // in order, with gaps where tokens take no part
  int64_t spare_tokens = 0;       // after the last run
  double scale = 0.125;
  double spread = 1.5;       // of queries and keys
  double offset = 0.0;       // added to queries and taken from keys: all scores become negative
  bool heads_first = false;  // in memory; otherwise tokens

  int64_t n_tokens() const {
    const SequenceRun& last = runs.back();
    return last.first_token + last.n_sequences * last.length + spare_tokens;
  }
  std::string name() const {
    std::string text = "attention: dtype " + std::to_string(static_cast<int>(dtype)) +
                       ", head_dim " + std::to_string(head_dim) + ", lengths";
    for (const auto& run : runs) text += " " + std::to_string(run.length);
    return text;
  }
};

inline std::vector<SequenceRun> runs_of(const std::vector<std::pair<int64_t, int64_t>>& counts) {
  std::vector<SequenceRun> runs;
  int64_t first = 0;
  for (const auto& [n_sequences, length] : counts) {
    runs.push_back({first, n_sequences, length});
    first += n_sequences * length;
  }
  return runs;
}

// [tokens, parts, heads, head_dim] as a projection leaves it, or with the heads first.
class Projection {
 public:
  Projection(const AttentionCase& c, int64_t parts)
      : c_(c),
        parts_(parts),
        memory_(c.n_tokens() * parts * c.n_heads * c.head_dim * size_of(c.dtype)) {}

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
  PackedHeads view(int64_t part) const {
    char* data = memory_.data() + index(0, part, 0, 0) * size_of(c_.dtype);
    return {data, index(1, 0, 0, 0), index(0, 0, 1, 0)};
  }
  std::vector<char> bits() const { return memory_.values(); }
  void poison() { memory_.poison(); }

 private:
  int64_t index(int64_t token, int64_t part, int64_t head, int64_t i) const {
    if (c_.heads_first) {
      return ((head * c_.n_tokens() + token) * parts_ + part) * c_.head_dim + i;
    }
    return ((token * parts_ + part) * c_.n_heads + head) * c_.head_dim + i;
  }
  const AttentionCase& c_;
  int64_t parts_;
  Guarded<char> memory_;
};

// Values in the order token, head, element; NaN where tokens take no part.
struct ExpectedAttention {
  std::vector<double> out, lse, gradient[3];
};

inline double dot(const double* a, const double* b, int64_t n) {
  return std::inner_product(a, a + n, b, 0.0);
}

class AttentionReference {
 public:
  AttentionReference(const AttentionCase& c, const Projection& qkv, const Projection& grad)
      : c_(c) {
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
  const ExpectedAttention& expected() const { return e_; }

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

  const AttentionCase& c_;
  std::vector<double> in_[4];
  ExpectedAttention e_;
};

// Within `share` of the largest expected value; untouched where nothing is expected.
inline void expect_part(const char* what, const AttentionCase& c, const Projection& values,
                        int64_t part, const std::vector<double>& expected, double share) {
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

inline void expect_lse(const ExpectedAttention& e, const Guarded<float>& lse, double absolute) {
  std::vector<float> own;
  std::vector<double> expected;
  for (std::size_t i = 0; i < e.lse.size(); ++i) {
    if (std::isnan(e.lse[i])) continue;
    own.push_back(lse[static_cast<int64_t>(i)]);
    expected.push_back(e.lse[i]);
  }
  expect_close("lse", own, expected, 1e-6, absolute);
}

// A case in memory: what the kernels read, and where they write.
struct AttentionMemory {
  AttentionMemory(const AttentionCase& c, uint64_t seed)
      : qkv(c, 3), grad(c, 1), out(c, 1), gradients(c, 3), lse(c.n_tokens() * c.n_heads), c_(c) {
    for (int64_t part = 0; part < 3; ++part) {
      const double offset = part == 2 ? 0.0 : part == 0 ? c.offset : -c.offset;
      qkv.fill(part, offset, part < 2 ? c.spread : 1.0, 3 * seed + part);
    }
    grad.fill(0, 0.0, 1.0, seed + 100);
  }

  AttentionProblem problem(const std::vector<SequenceRun>& runs) const {
    return {qkv.view(0),   qkv.view(1), qkv.view(2), runs.data(), static_cast<int64_t>(runs.size()),
            c_.n_tokens(), c_.n_heads,  c_.head_dim, c_.dtype,    c_.scale};
  }

  void poison_results() {
    out.poison();
    lse.poison();
    gradients.poison();
  }

  Projection qkv, grad, out, gradients;
  Guarded<float> lse;

 private:
  const AttentionCase& c_;
};

}  // namespace franca::testing
