// The CUDA kernels of Sinkhorn-Knopp on the emulated device, against float64.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "fibers.hpp"
#include "franca/cuda/sinkhorn.hpp"
#include "testing.hpp"

namespace franca::testing {
namespace {

using emulation::device;
constexpr double kTemperature = 0.06;               // whose inverse is no float
constexpr int64_t kLargestForPotentials = 1000000;  // elements; more take too long

struct Case {
  RaggedCase logits;
  int64_t n_valid;
  int max_cluster = 16;
  int multiprocessors = 3;
  bool cooperation = true;
  int shared_kib = 227;

  void choose_device() const {
    device().max_cluster = max_cluster;
    device().multiprocessors = multiprocessors;
    device().cooperation = cooperation;
    device().max_shared_bytes = static_cast<std::size_t>(shared_kib) * 1024;
  }
};

int64_t elements(const RaggedCase& logits) {
  return logits.n_rows * std::accumulate(logits.columns.begin(), logits.columns.end(), int64_t{0});
}

struct Reference {
  std::vector<double> maximum, total, prototype, row, mass;
};

double log_sum(const std::vector<double>& x) {
  double largest = -HUGE_VAL, sum = 0;
  for (double v : x) largest = std::max(largest, v);
  for (double v : x) sum += std::exp(v - largest);
  return x.empty() ? -HUGE_VAL : largest + std::log(sum);
}

// The half-steps for given prototype potentials.
void reference_rows(Reference& r, const RaggedMatrices& z, int64_t n_valid, double temperature) {
  const int64_t n_rows = z.shape().n_rows;
  r.row.assign(z.n_heads() * n_rows, -HUGE_VAL);
  r.mass.assign(z.total_columns(), 0.0);
  for (int64_t h = 0; h < z.n_heads(); ++h) {
    const double* a = r.prototype.data() + z.first_column(h);
    for (int64_t n = 0; n < n_valid; ++n) {
      std::vector<double> x(z.shape().columns[h]);
      for (std::size_t k = 0; k < x.size(); ++k) x[k] = z.at(h, n, k) / temperature + a[k];
      const double b = -log_sum(x);
      r.row[h * n_rows + n] = b;
      for (std::size_t k = 0; k < x.size(); ++k)
        r.mass[z.first_column(h) + k] += std::exp(x[k] + b);
    }
  }
}

Reference reference_first(const RaggedMatrices& z, int64_t n_valid, double temperature) {
  Reference r;
  for (int64_t h = 0; h < z.n_heads(); ++h) {
    for (int64_t k = 0; k < z.shape().columns[h]; ++k) {
      std::vector<double> x(n_valid);
      for (int64_t n = 0; n < n_valid; ++n) x[n] = z.at(h, n, k) / temperature;
      const double sum = log_sum(x);
      double largest = -HUGE_VAL;
      for (double v : x) largest = std::max(largest, v);
      r.maximum.push_back(largest);
      r.total.push_back(n_valid > 0 ? std::exp(sum - largest) : 0.0);
      r.prototype.push_back(n_valid > 0 ? -sum : 0.0);
    }
  }
  return r;
}

std::vector<float> to_float(const std::vector<double>& values) {
  return std::vector<float>(values.begin(), values.end());
}

// Takes the potentials as the kernels get them, so that only one half-step's error is judged.
void round_potentials(Reference& r) {
  for (double& a : r.prototype) a = static_cast<float>(a);
}

struct Results {
  std::vector<float> maximum, total, row, mass, row_alone;
};

Results run_passes(const RaggedMatrices& z, const Reference& r, int64_t n_valid) {
  const RaggedLogits view = z.view();
  Guarded<float> maximum(z.total_columns()), total(z.total_columns()), mass(z.total_columns());
  Guarded<float> row(z.n_heads() * view.n_rows), row_alone(row.size());
  Guarded<float> prototype(to_float(r.prototype));
  Guarded<char> first(cuda::column_logsumexp_workspace(view, n_valid));
  cuda::column_logsumexp(view, kTemperature, n_valid, maximum.data(), total.data(), first.data(),
                         first.size(), nullptr);
  Guarded<char> second(cuda::row_step_workspace(view, n_valid, true));
  cuda::row_step(view, kTemperature, prototype.data(), n_valid, row.data(), mass.data(),
                 second.data(), second.size(), nullptr);
  Guarded<char> third(cuda::row_step_workspace(view, n_valid, false));
  cuda::row_step(view, kTemperature, prototype.data(), n_valid, row_alone.data(), nullptr,
                 third.data(), third.size(), nullptr);
  return {maximum.values(), total.values(), row.values(), mass.values(), row_alone.values()};
}

void test_passes(const Case& c, uint64_t seed) {
  set_context("passes: " + c.logits.name() + ", valid " + std::to_string(c.n_valid) + ", seed " +
              std::to_string(seed));
  c.choose_device();
  emulation::set_seed(seed);
  const RaggedMatrices z(c.logits, seed);
  Reference r = reference_first(z, c.n_valid, kTemperature);
  round_potentials(r);
  reference_rows(r, z, c.n_valid, kTemperature);
  const Results results = run_passes(z, r, c.n_valid);
  // The exponents reach 40 times the spread, so their rounding costs about 5e-6 each.
  const double exponent = 4e-6 * c.logits.spread;
  expect_close("maximum", results.maximum, r.maximum, 3e-7, 1e-6);
  expect_close("total", results.total, r.total, 1e-5 + exponent, 0);
  expect_close("row", results.row, r.row, 1e-6, 5e-6 + exponent);
  expect_close("row alone", results.row_alone, r.row, 1e-6, 5e-6 + exponent);
  expect_close("mass", results.mass, r.mass, 2e-5 + 2 * exponent, 1e-30);
  emulation::set_seed(seed + 1000);
  const Results again = run_passes(z, r, c.n_valid);
  expect_same("maximum", results.maximum, again.maximum);
  expect_same("total", results.total, again.total);
  expect_same("row", results.row, again.row);
  expect_same("mass", results.mass, again.mass);
  z.check_surroundings();
}

void test_assignments(const Case& c, uint64_t seed) {
  set_context("assignments: " + c.logits.name());
  emulation::set_seed(seed);
  const RaggedMatrices z(c.logits, seed);
  Reference r = reference_first(z, c.n_valid, kTemperature);
  round_potentials(r);
  reference_rows(r, z, c.n_valid, kTemperature);
  const RaggedLogits view = z.view();
  std::vector<Guarded<float>*> outputs;
  std::vector<float*> pointers;
  for (int64_t k : c.logits.columns) {
    outputs.push_back(new Guarded<float>(view.n_rows * k, c.logits.misalign));
    pointers.push_back(outputs.back()->data());
  }
  Guarded<float> prototype(to_float(r.prototype));
  Guarded<char> workspace(cuda::assignments_workspace(view));
  cuda::assignments(view, kTemperature, prototype.data(), c.n_valid, pointers.data(),
                    workspace.data(), workspace.size(), nullptr);
  for (int64_t h = 0; h < z.n_heads(); ++h) {
    std::vector<double> expected;
    for (int64_t n = 0; n < view.n_rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < c.logits.columns[h]; ++k) {
        const double x = z.at(h, n, k) / kTemperature + r.prototype[z.first_column(h) + k];
        expected.push_back(n < c.n_valid ? std::exp(x + r.row[h * view.n_rows + n]) : 0.0);
        sum += (*outputs[h])[n * c.logits.columns[h] + k];
      }
      if (std::fabs(sum - (n < c.n_valid ? 1.0 : 0.0)) > 3e-6) fail("a row does not sum to 1");
    }
    expect_close("assignments", outputs[h]->values(), expected, 2e-5 + 8e-6 * c.logits.spread,
                 1e-30);
    delete outputs[h];
  }
}

void test_potentials(const Case& c, uint64_t seed, int iterations) {
  set_context("potentials: " + c.logits.name());
  c.choose_device();
  emulation::set_seed(seed);
  const RaggedMatrices z(c.logits, seed);
  Reference r = reference_first(z, c.n_valid, kTemperature);
  reference_rows(r, z, c.n_valid, kTemperature);
  for (int i = 1; i < iterations; ++i) {
    for (std::size_t k = 0; k < r.mass.size(); ++k) {
      if (r.mass[k] > 0) r.prototype[k] -= std::log(r.mass[k]);
    }
    reference_rows(r, z, c.n_valid, kTemperature);
  }
  const RaggedLogits view = z.view();
  Guarded<float> prototype(z.total_columns()), row(z.n_heads() * view.n_rows);
  Guarded<char> workspace(cuda::potentials_workspace(view, c.n_valid));
  cuda::potentials(view, kTemperature, iterations, c.n_valid, prototype.data(), row.data(),
                   workspace.data(), workspace.size(), nullptr);
  // A call of known shapes asks the driver nothing: it could be captured.
  const int queries = device().queries;
  const std::vector<float> first = prototype.values();
  emulation::set_seed(seed + 1000);
  workspace.poison();
  cuda::potentials(view, kTemperature, iterations, c.n_valid, prototype.data(), row.data(),
                   workspace.data(), workspace.size(), nullptr);
  if (device().queries != queries) fail("the driver was asked again");
  expect_same("prototype", first, prototype.values());
  expect_close("prototype", prototype.values(), r.prototype, 2e-6, 4e-5);
  expect_close("row", row.values(), r.row, 2e-6, 4e-5);
}

// Rows far from all prototypes, and logits so large that their exponentials overflow.
void test_extreme_logits(RaggedCase shape) {
  set_context("extreme logits: " + shape.name());
  shape.spread = 1e4;
  Case{shape, shape.n_rows}.choose_device();
  emulation::set_seed(5);
  RaggedMatrices z(shape, 5);
  // Of one head only, so that the teams of a cluster do not all have the same to do.
  for (int64_t n = 4; n < shape.n_rows; n += 5) {
    for (int64_t k = 0; k < shape.columns[0]; ++k) {
      z.set(0, n, k, -1e4 + static_cast<double>(k) * 1e-3);
    }
  }
  const double temperature = 0.04;
  Reference r = reference_first(z, shape.n_rows, temperature);
  round_potentials(r);
  reference_rows(r, z, shape.n_rows, temperature);
  const RaggedLogits view = z.view();
  const int64_t n_potentials = z.n_heads() * shape.n_rows;
  Guarded<float> row(n_potentials), mass(z.total_columns()), prototype(to_float(r.prototype));
  Guarded<char> workspace(cuda::row_step_workspace(view, shape.n_rows, true));
  cuda::row_step(view, temperature, prototype.data(), shape.n_rows, row.data(), mass.data(),
                 workspace.data(), workspace.size(), nullptr);
  // The exponents are as large as 5e5, where neighbouring floats are 1/32 apart.
  expect_close("row", row.values(), r.row, 1e-6, 0.1);
  double sum = 0;
  for (float m : mass.values()) sum += m;
  if (!(std::fabs(sum - static_cast<double>(n_potentials)) < 1e-3)) fail("mass is lost");
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca;
  using namespace franca::testing;
  constexpr DType kTypes[] = {DType::float32, DType::bfloat16, DType::float16};
  std::vector<Case> cases;
  for (DType dtype : kTypes) {
    cases.push_back({{{5, 37, 2060}, 7, dtype}, 7});
    cases.push_back({{{24, 8}, 70, dtype, 0, 0}, 66, 16, 1});
    cases.push_back(
        {{{2048 + 16, 72}, 5, dtype, 3, 2 * static_cast<std::size_t>(size_of(dtype))}, 4});
    cases.push_back({{{40, 24}, 66, dtype}, 66, 2, 3});
    cases.push_back({{{41, 129}, 75, dtype}, 69, 1, 2});
  }
  // Heads of one and of two blocks a row, which the clusters share so that a head ends with the
  // first step of one; and a row whose last pack is cut.
  cases.push_back({{{40, 8200, 130}, 68, DType::bfloat16, 24}, 67, 2, 4});
  cases.push_back({{{40, 8200, 130}, 68, DType::float32, 24}, 66, 2, 3});
  cases.push_back({{{6150}, 66, DType::float16, 26}, 66, 1, 2});
  cases.push_back({{{5}, 3, DType::bfloat16, kFarApart}, 3});
  cases.push_back({{{1}, 1}, 1});
  cases.push_back({{{64, 1}, 3}, 0});
  cases.push_back({{{64, 3}, 100}, 0});
  cases.push_back({{{16400, 64}, 65, DType::bfloat16}, 65, 4, 1});
  // Two blocks may not form a cluster here, so rows cannot stay on chip.
  cases.push_back({{{17000, 9}, 65, DType::float16}, 65, 1, 2});
  // Cheap ones first, so that most defects are found at once.
  std::stable_sort(cases.begin(), cases.end(), [](const Case& a, const Case& b) {
    return elements(a.logits) < elements(b.logits);
  });
  uint64_t seed = 1;
  test_extreme_logits({{67, 300}, 9});
  test_extreme_logits({{67, 300}, 67});
  test_extreme_logits({{67, 8200}, 66, DType::bfloat16});
  for (DType dtype : kTypes) {
    // All batches of rows: in shared memory and registers, or in part read again and again.
    const Case rows{{{24, 2100}, 63, dtype}, 61, 16, 3};
    test_potentials(rows, seed++, 3);
    test_potentials({rows.logits, 33, 16, 3, false, 100}, seed++, 3);
  }
  for (const Case& c : cases) {
    test_passes(c, seed++);
    if (c.n_valid == 0 || elements(c.logits) > kLargestForPotentials) continue;
    test_potentials(c, seed++, c.n_valid > 64 ? 2 : 3);
    if (c.logits.n_rows <= 64) test_assignments(c, seed++);
  }
  test_potentials({{{64, 300}, 3}, 0}, seed++, 2);
  test_potentials({{{64, 300}, 3}, 3}, seed++, 1);
  std::puts("sinkhorn on the emulated device: passed");
  return 0;
}
