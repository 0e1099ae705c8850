// The CUDA kernels of the clustering cross-entropy on the emulated device, against float64.
#include <cmath>

#include "cuda/logits.cuh"
#include "fibers.hpp"
#include "franca/cuda/clustering_cross_entropy.hpp"
#include "testing.hpp"

namespace franca::testing {
namespace {

constexpr double kStudentTemperature = 0.1, kTeacherTemperature = 0.06;

struct Case {
  RaggedCase student;
  RaggedCase teacher;
  int64_t n_targets;
  bool in_place = false;
  int multiprocessors = 3;
};

// Inputs and, in float64, what the kernels should give for them.
struct Problem {
  RaggedMatrices student, teacher;
  std::vector<float> prototype, row, weights, grad_loss;
  std::vector<int64_t> rows;
  std::vector<double> loss, lse;
  std::vector<std::vector<double>> gradient;

  Problem(const Case& c, uint64_t seed) : student(c.student, seed), teacher(c.teacher, seed + 1) {
    std::mt19937_64 generator(seed + 2);
    std::uniform_real_distribution<float> uniform(0.2f, 1.0f);
    for (int64_t k = 0; k < teacher.total_columns(); ++k) prototype.push_back(-uniform(generator));
    for (int64_t m = 0; m < c.student.n_rows; ++m) {
      weights.push_back(uniform(generator));
      for (int64_t p = 0; p < c.n_targets; ++p) rows.push_back(generator() % c.teacher.n_rows);
    }
    for (int64_t h = 0; h < student.n_heads(); ++h) {
      grad_loss.push_back(2.0f - uniform(generator));
      for (int64_t n = 0; n < c.teacher.n_rows; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < c.teacher.columns[h]; ++k) sum += std::exp(exponent(h, n, k));
        row.push_back(static_cast<float>(-std::log(sum)));
      }
    }
    for (int64_t h = 0; h < student.n_heads(); ++h) solve(c, h);
  }

  double exponent(int64_t h, int64_t n, int64_t k) const {
    return teacher.at(h, n, k) / kTeacherTemperature + prototype[teacher.first_column(h) + k];
  }

  void solve(const Case& c, int64_t h) {
    loss.push_back(0);
    gradient.emplace_back();
    for (int64_t m = 0; m < c.student.n_rows; ++m) {
      double largest = -HUGE_VAL, sum = 0, agreement = 0;
      const int64_t columns = c.student.columns[h];
      for (int64_t k = 0; k < columns; ++k) {
        largest = std::max(largest, student.at(h, m, k) / kStudentTemperature);
      }
      for (int64_t k = 0; k < columns; ++k) {
        sum += std::exp(student.at(h, m, k) / kStudentTemperature - largest);
      }
      lse.push_back(largest + std::log(sum));
      for (int64_t k = 0; k < columns; ++k) {
        double q = 0;
        for (int64_t p = 0; p < c.n_targets; ++p) {
          const int64_t n = rows[m * c.n_targets + p];
          q += std::exp(exponent(h, n, k) + row[h * c.teacher.n_rows + n]);
        }
        const double x = student.at(h, m, k) / kStudentTemperature;
        agreement += q * x;
        const double softmax = static_cast<double>(c.n_targets) * std::exp(x - lse.back());
        gradient[h].push_back(grad_loss[h] * weights[m] / kStudentTemperature * (softmax - q));
      }
      loss[h] += weights[m] * (static_cast<double>(c.n_targets) * lse.back() - agreement);
    }
  }
};

struct Results {
  std::vector<float> loss, lse;
  std::vector<std::vector<float>> gradient;
};

std::vector<float> gather(const Head& head, const RaggedCase& shape) {
  std::vector<float> values;
  for (int64_t m = 0; m < shape.n_rows; ++m) {
    for (int64_t k = 0; k < head.columns; ++k) {
      values.push_back(static_cast<float>(fetch(head.data, m * head.row_stride + k, shape.dtype)));
    }
  }
  return values;
}

Results run(const Case& c, const Problem& problem, uint64_t seed) {
  emulation::set_seed(seed);
  Guarded<float> prototype(problem.prototype), row(problem.row), weights(problem.weights);
  Guarded<float> grad_loss(problem.grad_loss);
  Guarded<int64_t> rows(problem.rows);
  const cuda::ClusteringProblem view{
      problem.student.view(), problem.teacher.view(), prototype.data(), row.data(),
      kStudentTemperature,    kTeacherTemperature,    rows.data(),      c.n_targets,
      weights.data()};
  const int64_t n_heads = problem.student.n_heads();
  Guarded<float> loss(n_heads), lse(n_heads * c.student.n_rows);
  Guarded<char> workspace(cuda::clustering_forward_workspace(view));
  cuda::clustering_forward(view, loss.data(), lse.data(), workspace.data(), workspace.size(),
                           nullptr);
  // Gradients go to matrices with rows of another distance, or over a copy of the student.
  RaggedCase shape = c.student;
  shape.row_padding += c.in_place ? 0 : 8;
  RaggedMatrices gradient(shape, 0);
  std::vector<Head> heads;
  for (int64_t h = 0; h < n_heads; ++h) {
    heads.push_back(gradient.view().heads[h]);
    for (int64_t m = 0; m < shape.n_rows; ++m) {
      for (int64_t k = 0; k < shape.columns[h]; ++k) {
        gradient.set(h, m, k, c.in_place ? problem.student.at(h, m, k) : NAN);
      }
    }
  }
  cuda::ClusteringProblem again = view;
  if (c.in_place) again.student = gradient.view();
  cuda::clustering_backward(again, grad_loss.data(), lse.data(), heads.data(), nullptr);
  Results results{loss.values(), lse.values(), {}};
  for (const Head& head : heads) results.gradient.push_back(gather(head, shape));
  gradient.check_surroundings();
  return results;
}

double epsilon(DType dtype) {
  return dtype == DType::float32 ? 2e-6 : dtype == DType::bfloat16 ? 4e-3 : 5e-4;
}

void test_case(const Case& c, uint64_t seed) {
  set_context("student " + c.student.name() + "; teacher " + c.teacher.name() + "; targets " +
              std::to_string(c.n_targets));
  emulation::device().multiprocessors = c.multiprocessors;
  const Problem problem(c, seed);
  const Results results = run(c, problem, seed);
  expect_close("loss", results.loss, problem.loss, 1e-5, 1e-6);
  expect_close("lse", results.lse, problem.lse, 2e-6, 2e-6);
  for (std::size_t h = 0; h < results.gradient.size(); ++h) {
    // Softmax and targets are at most 1 each; they may cancel.
    expect_close("gradient", results.gradient[h], problem.gradient[h],
                 epsilon(c.student.dtype) + 1e-4, 1e-4);
  }
  const Results again = run(c, problem, seed + 1000);
  expect_same("loss", results.loss, again.loss);
  expect_same("lse", results.lse, again.lse);
  for (std::size_t h = 0; h < results.gradient.size(); ++h) {
    expect_same("gradient", results.gradient[h], again.gradient[h]);
  }
}

// A teacher row that does not exist must not be read; its student row's results are NaN.
void test_unknown_teacher_row(int64_t unknown) {
  set_context("teacher row " + std::to_string(unknown));
  // Rows longer than a page, so that what lies before the first one cannot be touched.
  constexpr int64_t kColumns = 1040;
  const Case c{{{kColumns}, 3}, {{kColumns}, 2}, 1};
  Problem problem(c, 3);
  problem.rows[1] = unknown;
  const Results results = run(c, problem, 4);
  if (!std::isnan(results.loss[0])) fail("the loss hides an unknown teacher row");
  if (!std::isnan(results.gradient[0][kColumns])) fail("the gradient hides an unknown teacher row");
  if (std::isnan(results.gradient[0][0])) fail("an unknown teacher row spoils other rows");
}

// More rows than a grid has blocks for at a few rows each.
void test_millions_of_rows() {
  set_context("millions of rows");
  for (int64_t n_rows : {int64_t{4'194'240}, int64_t{4'194'241}, int64_t{1} << 31}) {
    const cuda::Chunks chunks = cuda::short_chunks(n_rows, 1, 132);
    if (chunks.count > 65535) fail("more blocks than a grid may have along y");
    if (chunks.count * chunks.rows < n_rows) fail("rows are left out");
  }
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca;
  using namespace franca::testing;
  constexpr DType f32 = DType::float32, bf16 = DType::bfloat16, f16 = DType::float16;
  const Case cases[] = {
      {{{5, 37, 2060}, 7, f32}, {{5, 37, 2060}, 4, f32}, 2},
      {{{5, 2056, 40}, 9, bf16}, {{5, 2056, 40}, 5, bf16}, 1, true},
      {{{300, 64}, 70, f16}, {{300, 64}, 3, f16}, 3, true, 2},
      {{{64, 2112}, 3, bf16, 8, 2}, {{64, 2112}, 3, f32, 1, 4}, 2},
      {{{17, 264}, 66, f32, 5, 4}, {{17, 264}, 2, f16, 8}, 1},
      {{{1}, 1, f32}, {{1}, 1, f32}, 1},
      {{{7}, 3, bf16, kFarApart}, {{7}, 3, f16, kFarApart}, 1},
      {{{9}, 260, f32}, {{9}, 2, f32}, 1},
      // Whole slices, with several rows for each warp, and teacher rows that are not aligned.
      {{{2048, 16}, 70, bf16}, {{2048, 16}, 9, bf16}, 2, true, 1},
      {{{2048}, 9, bf16}, {{2048}, 3, bf16, 0, 2}, 1},
  };
  uint64_t seed = 1;
  for (const Case& c : cases) test_case(c, seed++);
  test_unknown_teacher_row(2);
  test_unknown_teacher_row(-1);
  test_millions_of_rows();
  std::puts("clustering cross-entropy on the emulated device: passed");
  return 0;
}
