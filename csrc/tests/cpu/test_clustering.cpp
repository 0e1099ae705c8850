// The CPU kernels of the clustering cross-entropy against float64.
#include <algorithm>
#include <random>

#include "cpu/tile_kernels.hpp"
#include "cpu_testing.hpp"
#include "franca/clustering_cross_entropy.hpp"

namespace franca::testing {
namespace {

constexpr double kStudentTemperature = 0.1;
constexpr double kTeacherTemperature = 0.07;

// A problem with teacher rows of a different number and type than the student's.
struct Case {
  Case(const RaggedCase& shape, int64_t targets)
      : student(shape, 1),
        teacher(teacher_shape(shape), 2),
        n_targets(targets),
        prototype(teacher.total_columns()),
        row(teacher.n_heads() * teacher.shape().n_rows),
        rows(shape.n_rows * targets),
        weights(shape.n_rows),
        grad_loss(student.n_heads()) {
    std::mt19937_64 generator(3);
    std::uniform_real_distribution<double> uniform(0.0, 1.0);
    for (int64_t k = 0; k < prototype.size(); ++k) prototype[k] = float(uniform(generator));
    set_rows();
    // Repeated and unordered, as the crops of an image have it.
    for (int64_t i = 0; i < rows.size(); ++i) {
      rows[i] = static_cast<int64_t>(generator() % std::min<int64_t>(teacher.shape().n_rows, 4));
    }
    for (int64_t m = 0; m < weights.size(); ++m) weights[m] = float(uniform(generator));
    for (int64_t h = 0; h < grad_loss.size(); ++h) grad_loss[h] = float(uniform(generator)) - 0.5f;
  }

  static RaggedCase teacher_shape(RaggedCase shape) {
    shape.n_rows = shape.n_rows / 2 + 1;
    shape.row_padding += 1;
    shape.dtype = shape.dtype == DType::float32 ? DType::bfloat16 : DType::float32;
    shape.misalign = 0;
    return shape;
  }

  // Row potentials that make every target row sum to 1, as Sinkhorn-Knopp does.
  void set_rows() {
    for (int64_t h = 0; h < teacher.n_heads(); ++h) {
      for (int64_t n = 0; n < teacher.shape().n_rows; ++n) {
        std::vector<double> x(teacher.shape().columns[h]);
        for (std::size_t k = 0; k < x.size(); ++k) x[k] = exponent(h, n, int64_t(k));
        row[h * teacher.shape().n_rows + n] = static_cast<float>(-log_sum(x));
      }
    }
  }

  double exponent(int64_t h, int64_t n, int64_t k) const {
    return teacher.at(h, n, k) / kTeacherTemperature + prototype[teacher.first_column(h) + k];
  }

  double target(int64_t h, int64_t m, int64_t k) const {
    double q = 0.0;
    for (int64_t p = 0; p < n_targets; ++p) {
      const int64_t n = rows[m * n_targets + p];
      q += std::exp(exponent(h, n, k) + row[h * teacher.shape().n_rows + n]);
    }
    return q;
  }

  cpu::ClusteringProblem problem() const {
    return {student.view(), teacher.view(),      prototype.data(),
            row.data(),     kStudentTemperature, kTeacherTemperature,
            rows.data(),    n_targets,           weights.data()};
  }

  RaggedMatrices student, teacher;
  int64_t n_targets;
  Guarded<float> prototype, row;
  Guarded<int64_t> rows;
  Guarded<float> weights, grad_loss;
};

struct Reference {
  std::vector<double> loss, lse;
  std::vector<std::vector<double>> gradient;
};

Reference reference(const Case& c) {
  Reference r;
  const int64_t n_rows = c.student.shape().n_rows;
  for (int64_t h = 0; h < c.student.n_heads(); ++h) {
    const int64_t columns = c.student.shape().columns[h];
    r.loss.push_back(0.0);
    r.gradient.emplace_back();
    for (int64_t m = 0; m < n_rows; ++m) {
      std::vector<double> x(columns);
      for (int64_t k = 0; k < columns; ++k) x[k] = c.student.at(h, m, k) / kStudentTemperature;
      const double lse = log_sum(x);
      r.lse.push_back(lse);
      double row_loss = static_cast<double>(c.n_targets) * lse;
      const double factor = double(c.grad_loss[h]) * c.weights[m] / kStudentTemperature;
      for (int64_t k = 0; k < columns; ++k) {
        const double q = c.target(h, m, k);
        row_loss -= q * x[k];
        r.gradient.back().push_back(factor * (double(c.n_targets) * std::exp(x[k] - lse) - q));
      }
      r.loss.back() += c.weights[m] * row_loss;
    }
  }
  return r;
}

struct Gradients {
  Gradients(const Case& c) {
    for (int64_t h = 0; h < c.student.n_heads(); ++h) {
      const Head& head = c.student.view().heads[h];
      const int64_t bytes =
          c.student.shape().n_rows * head.columns * size_of(c.student.shape().dtype);
      memory.push_back(new Guarded<char>(bytes));
      heads.push_back({memory.back()->data(), head.columns, head.columns});
    }
  }
  ~Gradients() {
    for (Guarded<char>* m : memory) delete m;
  }
  std::vector<Guarded<char>*> memory;
  std::vector<Head> heads;
};

std::vector<std::vector<float>> run(const Case& c, const std::vector<double>& lse, int threads) {
  const int64_t n_heads = c.student.n_heads(), n_rows = c.student.shape().n_rows;
  Guarded<float> loss(n_heads), own_lse(n_heads * n_rows), given_lse(to_float(lse));
  Guarded<char> workspace(cpu::clustering_forward_workspace(n_heads, n_rows));
  cpu::clustering_forward(c.problem(), loss.data(), own_lse.data(), workspace.data(),
                          workspace.size(), threads);
  std::vector<std::vector<float>> results = {loss.values(), own_lse.values()};
  Gradients gradients(c);
  cpu::clustering_backward(c.problem(), c.grad_loss.data(), given_lse.data(),
                           gradients.heads.data(), threads);
  for (int64_t h = 0; h < n_heads; ++h) {
    std::vector<float> values(n_rows * gradients.heads[h].columns);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(
          fetch(gradients.heads[h].data, static_cast<int64_t>(i), c.student.shape().dtype));
    }
    results.push_back(values);
  }
  c.student.check_surroundings();
  c.teacher.check_surroundings();
  return results;
}

void test_loss(const RaggedCase& shape, int64_t n_targets) {
  const Case c(shape, n_targets);
  const Reference r = reference(c);
  const double largest = 1.0 + shape.spread / kTeacherTemperature;
  const double unit[] = {1.2e-7, 0x1p-8, 0x1p-11};  // rounding of the gradient
  const double rounding = unit[static_cast<int>(shape.dtype)];
  for_isas(shape.name() + ", targets " + std::to_string(n_targets), [&](int threads) {
    const std::vector<std::vector<float>> results = run(c, r.lse, threads);
    double scale = 0.0;
    for (double loss : r.loss) scale = std::max(scale, std::fabs(loss));
    expect_close("loss", results[0], r.loss, 1e-6, (1e-6 + 2e-7 * largest) * (scale + largest));
    expect_close("lse", results[1], r.lse, 3e-7, 1e-6);
    for (int64_t h = 0; h < c.student.n_heads(); ++h) {
      const double bound = std::fabs(c.grad_loss[h]) / kStudentTemperature;
      expect_close("gradient", results[2 + h], r.gradient[h], rounding,
                   bound * double(n_targets) * (2e-7 + 3e-7 * largest) + 6e-8);
    }
    return results;
  });
}

// The gradient over the student's own memory has the same bits.
void test_in_place() {
  const RaggedCase shape{{600, 30}, 6, DType::bfloat16, 2, 0, 1.0};
  const Case c(shape, 2);
  const Reference r = reference(c);
  for_isas("in place", [&](int threads) {
    const Case own(shape, 2);
    const std::vector<std::vector<float>> results = run(c, r.lse, threads);
    Guarded<float> lse(to_float(r.lse));
    cpu::clustering_backward(own.problem(), own.grad_loss.data(), lse.data(),
                             own.student.view().heads, threads);
    for (int64_t h = 0; h < own.student.n_heads(); ++h) {
      const Head& head = own.student.view().heads[h];
      std::vector<float> values;
      for (int64_t m = 0; m < shape.n_rows; ++m) {
        for (int64_t k = 0; k < head.columns; ++k) {
          values.push_back(
              static_cast<float>(fetch(head.data, m * head.row_stride + k, shape.dtype)));
        }
      }
      expect_same("gradient in place", values, results[2 + h]);
    }
    own.student.check_surroundings();
    return results;
  });
}

// Gradients are rounded to the nearest number of their type, ties to even, whatever they are.
void test_rounding(DType dtype) {
  std::mt19937_64 generator(5);
  std::vector<float> values = {0.0f, -0.0f, 65519.9f, 65520.0f, -65536.0f, 1e-8f, 3e38f, 5.9e-8f};
  for (int i = 0; i < 20000; ++i) {
    uint32_t bits = static_cast<uint32_t>(generator());
    // Half of them close to ties of either type; the rest anywhere.
    if (i % 4 == 0) bits = (bits & 0xffff0000u) | 0x8000u;
    if (i % 4 == 1) bits = (bits & 0x8fffe000u) | 0x38001000u;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    values.push_back(value);
  }
  const auto n = static_cast<int64_t>(values.size());
  const std::vector<char> logits(values.size() * 4, 0);
  for_isas("rounding to dtype " + std::to_string(static_cast<int>(dtype)), [&](int) {
    std::vector<char> gradient(values.size() * 4);
    cpu::tile_kernels().student_gradient[static_cast<int>(dtype)](
        logits.data(), n, cpu::Scale(1.0), 0.0f, 0.0f, -1.0f, values.data(), gradient.data());
    std::vector<std::vector<float>> results(1);
    for (int64_t i = 0; i < n; ++i) {
      const double expected = rounded(values[i], dtype), value = fetch(gradient.data(), i, dtype);
      const bool both_nan = std::isnan(expected) && std::isnan(value);
      if (value != expected && !both_nan) {
        fail(std::to_string(values[i]) + " became " + std::to_string(value));
      }
      results[0].push_back(std::isnan(value) ? 0.0f : static_cast<float>(value));
    }
    return results;
  });
}

void test_refusals() {
  const RaggedCase shape{{4, 5}, 3, DType::float32, 0, 0, 1.0};
  Case c(shape, 2);
  float loss[2], lse[6];
  double workspace[6];
  const auto pass = [&](const cpu::ClusteringProblem& problem) {
    cpu::clustering_forward(problem, loss, lse, workspace, sizeof workspace, 1);
  };
  cpu::ClusteringProblem problem = c.problem();
  problem.student_temperature = -1.0;
  expect_refusal("student temperature", [&] { pass(problem); });
  problem = c.problem();
  problem.weights = nullptr;
  expect_refusal("no weights", [&] { pass(problem); });
  problem = c.problem();
  problem.teacher.n_heads = 1;
  expect_refusal("heads that differ", [&] { pass(problem); });
  const RaggedMatrices other({{4, 6}, 3, DType::float32, 0, 0, 1.0}, 1);
  problem = c.problem();
  problem.teacher = other.view();
  expect_refusal("columns that differ", [&] { pass(problem); });
  expect_refusal("workspace too small",
                 [&] { cpu::clustering_forward(c.problem(), loss, lse, workspace, 8, 1); });
  for (int64_t bad : {int64_t{-1}, c.teacher.shape().n_rows}) {
    c.rows[5] = bad;
    expect_refusal("a teacher row that does not exist", [&] { pass(c.problem()); });
  }
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca::testing;
  using franca::DType;
  for (const RaggedCase& shape : shapes()) {
    for (int64_t n_targets : {1, 2, 3}) test_loss(shape, n_targets);
  }
  test_loss({{20}, 40, DType::float32, 0, 0, 1.0}, 0);
  test_in_place();
  for (DType dtype : {DType::float32, DType::bfloat16, DType::float16}) test_rounding(dtype);
  test_refusals();
}
