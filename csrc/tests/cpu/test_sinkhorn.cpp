// The CPU kernels of Sinkhorn-Knopp against float64.
#include "franca/sinkhorn.hpp"

#include <algorithm>

#include "cpu/tile_kernels.hpp"
#include "cpu_testing.hpp"

namespace franca::testing {
namespace {

constexpr double kTemperature = 0.07;

struct Reference {
  std::vector<double> maximum, column_lse, row, mass;
  std::vector<float> prototype;
  std::vector<std::vector<double>> assignments;
};

// `offset` is added to the prototype potentials, whose sums then need a shift against overflow.
Reference reference(const RaggedMatrices& z, int64_t n_valid, double offset) {
  Reference r;
  const int64_t n_rows = z.shape().n_rows;
  r.row.assign(z.n_heads() * n_rows, -HUGE_VAL);
  r.mass.assign(z.total_columns(), 0.0);
  for (int64_t h = 0; h < z.n_heads(); ++h) {
    const int64_t columns = z.shape().columns[h];
    for (int64_t k = 0; k < columns; ++k) {
      std::vector<double> x(n_valid);
      for (int64_t n = 0; n < n_valid; ++n) x[n] = z.at(h, n, k) / kTemperature;
      const double sum = log_sum(x);
      r.maximum.push_back(n_valid > 0 ? *std::max_element(x.begin(), x.end()) : -HUGE_VAL);
      r.column_lse.push_back(sum);
      r.prototype.push_back(static_cast<float>((n_valid > 0 ? -sum : 0.0) + offset));
    }
    const float* a = r.prototype.data() + z.first_column(h);
    r.assignments.emplace_back(n_rows * columns, 0.0);
    for (int64_t n = 0; n < n_valid; ++n) {
      std::vector<double> x(columns);
      for (int64_t k = 0; k < columns; ++k) x[k] = z.at(h, n, k) / kTemperature + a[k];
      const double b = -log_sum(x);
      r.row[h * n_rows + n] = b;
      for (int64_t k = 0; k < columns; ++k) {
        r.mass[z.first_column(h) + k] += std::exp(x[k] + b);
        r.assignments[h][n * columns + k] = std::exp(x[k] + b);
      }
    }
  }
  return r;
}

std::vector<std::vector<float>> run(const RaggedMatrices& z, const Reference& r, int64_t n_valid,
                                    int threads) {
  const RaggedLogits view = z.view();
  Guarded<float> maximum(z.total_columns()), total(z.total_columns()), mass(z.total_columns());
  Guarded<float> row(z.n_heads() * view.n_rows), row_alone(row.size());
  Guarded<float> prototype(r.prototype);
  Guarded<char> workspace(cpu::row_step_workspace(z.total_columns(), n_valid));
  cpu::column_logsumexp(view, kTemperature, n_valid, maximum.data(), total.data(), threads);
  cpu::row_step(view, kTemperature, prototype.data(), n_valid, row.data(), mass.data(),
                workspace.data(), workspace.size(), threads);
  cpu::row_step(view, kTemperature, prototype.data(), n_valid, row_alone.data(), nullptr, nullptr,
                0, threads);
  std::vector<std::vector<float>> results = {maximum.values(), total.values(), row.values(),
                                             row_alone.values(), mass.values()};
  std::vector<Guarded<float>*> out;
  std::vector<float*> targets;
  for (int64_t h = 0; h < z.n_heads(); ++h) {
    out.push_back(new Guarded<float>(view.n_rows * view.heads[h].columns));
    targets.push_back(out.back()->data());
  }
  cpu::assignments(view, kTemperature, prototype.data(), n_valid, targets.data(), threads);
  for (Guarded<float>* q : out) {
    results.push_back(q->values());
    delete q;
  }
  z.check_surroundings();
  return results;
}

void test_passes(const RaggedCase& shape, int64_t n_valid, double offset = 0.0) {
  const RaggedMatrices z(shape, 1);
  const Reference r = reference(z, n_valid, offset);
  // Exponents are floats: one unit in the last place of the largest is what a result may be off.
  const double ulp = 1.2e-7 * (1.0 + std::fabs(offset) + shape.spread / kTemperature);
  for_isas(shape.name() + ", valid " + std::to_string(n_valid), [&](int threads) {
    const std::vector<std::vector<float>> results = run(z, r, n_valid, threads);
    expect_close("maximum", results[0], r.maximum, 2e-7, 0);
    // Maximum and total belong together: their sum is what counts.
    std::vector<float> lse(results[0].size());
    for (std::size_t k = 0; k < lse.size(); ++k) {
      lse[k] = static_cast<float>(double(results[0][k]) + std::log(double(results[1][k])));
    }
    expect_close("column log-sum-exp", lse, r.column_lse, 3e-7, 1e-6);
    expect_close("row", results[2], r.row, 2e-7, 1e-6 + 2 * ulp);
    expect_same("row without masses", results[2], results[3]);
    expect_close("mass", results[4], r.mass, 4e-6 + 3 * ulp, 1e-30);
    for (int64_t h = 0; h < z.n_heads(); ++h) {
      expect_close("assignments", results[5 + h], r.assignments[h], 4e-6 + 3 * ulp, 1e-37);
    }
    return results;
  });
}

// All iterations at once against the same steps in float64.
void test_potentials(const RaggedCase& shape, int64_t n_valid) {
  const RaggedMatrices z(shape, 1);
  const int64_t n_rows = z.shape().n_rows;
  std::vector<double> a(z.total_columns(), 0.0), b(z.n_heads() * n_rows, 0.0);
  const auto exponent = [&](int64_t h, int64_t n, int64_t k) {
    return z.at(h, n, k) / kTemperature + a[z.first_column(h) + k] + b[h * n_rows + n];
  };
  for (int iteration = 0; iteration < 3; ++iteration) {
    for (int64_t h = 0; h < z.n_heads(); ++h) {
      const int64_t columns = z.shape().columns[h];
      for (int64_t k = 0; k < columns; ++k) {
        std::vector<double> x(n_valid);
        for (int64_t n = 0; n < n_valid; ++n) x[n] = exponent(h, n, k);
        a[z.first_column(h) + k] -= log_sum(x);
      }
      for (int64_t n = 0; n < n_valid; ++n) {
        std::vector<double> x(columns);
        for (int64_t k = 0; k < columns; ++k) x[k] = exponent(h, n, k);
        b[h * n_rows + n] -= log_sum(x);
      }
    }
  }
  for (int64_t h = 0; h < z.n_heads(); ++h) {
    for (int64_t n = n_valid; n < n_rows; ++n) b[h * n_rows + n] = -HUGE_VAL;
  }
  for_isas("potentials of " + shape.name(), [&](int threads) {
    const RaggedLogits view = z.view();
    Guarded<float> prototype(z.total_columns()), row(z.n_heads() * n_rows);
    Guarded<char> workspace(cpu::potentials_workspace(view, n_valid, threads));
    const bool done = cpu::potentials(view, kTemperature, 3, n_valid, prototype.data(), row.data(),
                                      workspace.data(), workspace.size(), threads);
    z.check_surroundings();
    // Far apart logits are left to the passes, and only those.
    if (!done) return std::vector<std::vector<float>>{{shape.spread > 1.0 ? 0.0f : NAN}};
    const double ulp = 1.2e-7 * (1.0 + shape.spread / kTemperature);
    expect_close("prototype", prototype.values(), a, 1e-6, 4 * ulp);
    expect_close("row", row.values(), b, 1e-6, 4 * ulp);
    return std::vector<std::vector<float>>{prototype.values(), row.values()};
  });
}

// exp over the whole range of its arguments: within three units in the last place.
void test_exponential() {
  std::vector<float> x, zeros;
  for (double v = -110.0; v < 87.0; v += 0.00137) x.push_back(static_cast<float>(v));
  zeros.assign(x.size(), 0.0f);
  for_isas("exp", [&](int) {
    std::vector<float> y(x.size());
    const auto write = cpu::tile_kernels().write_exp[static_cast<int>(DType::float32)];
    write(x.data(), static_cast<int64_t>(x.size()), cpu::Scale(1.0), zeros.data(), 0.0f, y.data());
    std::vector<double> expected(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      expected[i] = x[i] < -87.33654f ? 0.0 : std::exp(double(x[i]));
    }
    expect_close("exp", y, expected, 3 * 0x1p-23, 0);
    return std::vector<std::vector<float>>{y};
  });
}

void test_refusals() {
  const RaggedMatrices z({{4, 5}, 3, DType::float32, 0, 0, 1.0}, 1);
  const RaggedLogits good = z.view();
  std::vector<float> columns(9), rows(6);
  float* out[2] = {columns.data(), columns.data()};
  const auto pass = [&](const RaggedLogits& logits, double temperature, int64_t n_valid) {
    cpu::column_logsumexp(logits, temperature, n_valid, columns.data(), columns.data(), 1);
  };
  expect_refusal("temperature 0", [&] { pass(good, 0.0, 3); });
  expect_refusal("temperature NaN", [&] { pass(good, std::nan(""), 3); });
  expect_refusal("n_valid too large", [&] { pass(good, 1.0, 4); });
  expect_refusal("n_valid negative", [&] { pass(good, 1.0, -1); });
  const Head no_columns[] = {{good.heads[0].data, 0, 4}};
  const Head no_memory[] = {{nullptr, 4, 4}};
  expect_refusal("no columns", [&] { pass({no_columns, 1, 3, DType::float32}, 1.0, 3); });
  expect_refusal("no memory", [&] { pass({no_memory, 1, 3, DType::float32}, 1.0, 3); });
  expect_refusal("dtype", [&] { pass({good.heads, 2, 3, static_cast<DType>(7)}, 1.0, 3); });
  expect_refusal("no result",
                 [&] { cpu::column_logsumexp(good, 1.0, 3, nullptr, columns.data(), 1); });
  expect_refusal("no prototype", [&] { cpu::assignments(good, 1.0, nullptr, 3, out, 1); });
  const RaggedMatrices tall({{4}, 64, DType::float32, 0, 0, 1.0}, 1);
  std::vector<float> tall_rows(64), workspace(1);
  expect_refusal("workspace too small", [&] {
    cpu::row_step(tall.view(), 1.0, columns.data(), 64, tall_rows.data(), columns.data(),
                  workspace.data(), sizeof(float), 1);
  });
  expect_refusal("instruction set", [] { cpu::set_isa("mmx"); });
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca::testing;
  test_exponential();
  for (const RaggedCase& shape : shapes()) {
    test_passes(shape, shape.n_rows);
    if (shape.n_rows > 1) test_passes(shape, shape.n_rows / 2);
    test_passes(shape, 0);
    test_potentials(shape, shape.n_rows);
    if (shape.n_rows > 1) test_potentials(shape, shape.n_rows / 2);
    test_passes(shape, shape.n_rows, 300.0);
    test_passes(shape, shape.n_rows, -300.0);
  }
  test_refusals();
}
