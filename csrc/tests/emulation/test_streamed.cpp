// The CUDA kernels on tensor cores, on the emulated device, against float64: scores, and the passes
// that never store them.
#include <cmath>

#include "fibers.hpp"
#include "franca/cuda/streamed_clustering.hpp"
#include "testing.hpp"

namespace franca::testing {
namespace {

constexpr double kStudentTemperature = 0.1, kTeacherTemperature = 0.07;

struct Case {
  DType dtype;
  std::vector<int64_t> prototypes;  // of each head
  int64_t depth;
  int64_t n_rows;
  int64_t n_valid;
  int64_t padding = 0;
  std::size_t misalign = 0;
  int multiprocessors = 3;

  std::string name() const {
    return "streamed: rows " + std::to_string(n_rows) + ", depth " + std::to_string(depth) +
           ", prototypes " + std::to_string(prototypes[0]) + ", dtype " +
           std::to_string(static_cast<int>(dtype)) + ", padding " + std::to_string(padding);
  }
};

// Factors of all heads, and their scores in float64.
class Side {
 public:
  Side(const Case& c, int64_t n_rows, uint64_t seed) : n_prototypes_(c.prototypes) {
    std::mt19937_64 generator(seed);
    std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
    const double spread = 1.5 / std::sqrt(static_cast<double>(c.depth));
    int64_t first = 0;
    for (int64_t n : c.prototypes) {
      first_.push_back(first);
      first += n;
      // A head in these tests is a matrix of its own, since heads differ in rows here.
      RaggedCase shape{{c.depth}, n_rows, c.dtype, c.padding, c.misalign, 1.0};
      features_.push_back(new RaggedMatrices(shape, generator()));
      shape.n_rows = n;
      shape.spread = spread;
      prototypes_.push_back(new RaggedMatrices(shape, generator()));
      std::vector<float> scale(n);
      for (float& s : scale) s = uniform(generator);
      scales_.push_back(new Guarded<float>(scale));
      feature_heads_.push_back(features_.back()->view().heads[0]);
      prototype_heads_.push_back(prototypes_.back()->view().heads[0]);
      scale_pointers_.push_back(scales_.back()->data());
    }
    total_ = first;
    view_ = {feature_heads_.data(),
             prototype_heads_.data(),
             n_prototypes_.data(),
             scale_pointers_.data(),
             static_cast<int64_t>(c.prototypes.size()),
             n_rows,
             c.dtype};
    depth_ = c.depth;
  }

  const cuda::ScoreSide& view() const { return view_; }
  int64_t n_heads() const { return view_.n_heads; }
  int64_t total() const { return total_; }
  int64_t first(int64_t h) const { return first_[h]; }
  int64_t columns(int64_t h) const { return n_prototypes_[h]; }
  double scale(int64_t h, int64_t k) const { return (*scales_[h])[k]; }

  double product(int64_t h, int64_t n, int64_t k) const {
    double sum = 0;
    for (int64_t c = 0; c < depth_; ++c) {
      sum += features_[h]->at(0, n, c) * prototypes_[h]->at(0, k, c);
    }
    return sum;
  }
  double score(int64_t h, int64_t n, int64_t k) const { return product(h, n, k) * scale(h, k); }

 private:
  std::vector<int64_t> n_prototypes_, first_;
  std::vector<RaggedMatrices*> features_, prototypes_;  // kept until the process ends
  std::vector<Guarded<float>*> scales_;
  std::vector<Head> feature_heads_, prototype_heads_;
  std::vector<const float*> scale_pointers_;
  cuda::ScoreSide view_{};
  int64_t total_ = 0, depth_ = 0;
};

void test_scores(const Case& c, uint64_t seed, bool with_scales) {
  set_context("scores of " + c.name());
  emulation::set_seed(seed);
  const Side side(c, c.n_rows, seed);
  cuda::ScoreSide view = side.view();
  const std::vector<const float*> none(c.prototypes.size(), nullptr);
  if (!with_scales) view.scales = none.data();
  RaggedMatrices out({c.prototypes, c.n_rows, c.dtype, c.padding, c.misalign}, 0);
  for (int64_t h = 0; h < side.n_heads(); ++h) {
    for (int64_t n = 0; n < c.n_rows; ++n) {
      for (int64_t k = 0; k < side.columns(h); ++k) out.set(h, n, k, NAN);
    }
  }
  Guarded<float> logsumexp(side.n_heads() * c.n_rows), unrounded(logsumexp.size());
  Guarded<char> workspace(cuda::prototype_scores_workspace(view, true));
  const auto run = [&](const Head* heads, float* sums) {
    workspace.poison();
    cuda::prototype_scores(view, heads, kTeacherTemperature, sums, workspace.data(),
                           workspace.size(), nullptr);
  };
  run(out.view().heads, nullptr);
  run(nullptr, unrounded.data());
  std::vector<double> expected_sums, expected_unrounded;
  for (int64_t h = 0; h < side.n_heads(); ++h) {
    const Head& head = out.view().heads[h];
    std::vector<float> values;
    std::vector<double> expected;
    for (int64_t n = 0; n < c.n_rows; ++n) {
      for (int64_t k = 0; k < head.columns; ++k) {
        values.push_back(static_cast<float>(fetch(head.data, n * head.row_stride + k, c.dtype)));
        expected.push_back(with_scales ? side.score(h, n, k) : side.product(h, n, k));
      }
    }
    expect_close("scores", values, expected, c.dtype == DType::bfloat16 ? 4e-3 : 5e-4, 3e-5);
    for (int64_t n = 0; n < c.n_rows; ++n) {
      double stored = 0, exact = 0;
      for (int64_t i = n * head.columns; i < (n + 1) * head.columns; ++i) {
        stored += std::exp(static_cast<double>(values[i]) / kTeacherTemperature);
        exact += std::exp(expected[i] / kTeacherTemperature);
      }
      expected_sums.push_back(std::log(stored));
      expected_unrounded.push_back(std::log(exact));
    }
  }
  expect_close("log-sum-exp alone", unrounded.values(), expected_unrounded, 2e-6, 2e-5);
  // Both at once: the same scores, and the log-sum-exp of what was stored.
  RaggedMatrices again({c.prototypes, c.n_rows, c.dtype, c.padding, c.misalign}, 0);
  run(again.view().heads, logsumexp.data());
  for (int64_t h = 0; h < side.n_heads(); ++h) {
    const Head &head = out.view().heads[h], &other = again.view().heads[h];
    for (int64_t n = 0; n < c.n_rows; ++n) {
      const std::size_t start = n * head.row_stride * size_of(c.dtype);
      if (std::memcmp(static_cast<char*>(head.data) + start, static_cast<char*>(other.data) + start,
                      head.columns * size_of(c.dtype)) != 0) {
        fail("scores differ where their log-sum-exp is asked for, too");
      }
    }
  }
  expect_close("log-sum-exp", logsumexp.values(), expected_sums, 2e-6, 2e-5);
  again.check_surroundings();
  out.check_surroundings();
}

void test_passes(const Case& c, uint64_t seed) {
  set_context(c.name());
  emulation::device().multiprocessors = c.multiprocessors;
  emulation::set_seed(seed);
  const Side side(c, c.n_rows, seed);
  std::vector<double> maximum, total, prototype, row(side.n_heads() * c.n_rows, -HUGE_VAL);
  std::vector<double> mass(side.total(), 0.0);
  for (int64_t h = 0; h < side.n_heads(); ++h) {
    for (int64_t k = 0; k < side.columns(h); ++k) {
      double largest = -HUGE_VAL, sum = 0;
      for (int64_t n = 0; n < c.n_valid; ++n) {
        largest = std::max(largest, side.score(h, n, k) / kTeacherTemperature);
      }
      for (int64_t n = 0; n < c.n_valid; ++n) {
        sum += std::exp(side.score(h, n, k) / kTeacherTemperature - largest);
      }
      maximum.push_back(largest);
      total.push_back(sum);
      prototype.push_back(sum > 0 ? static_cast<float>(-largest - std::log(sum)) : 0.0);
    }
    for (int64_t n = 0; n < c.n_valid; ++n) {
      const auto exponent = [&](int64_t k) {
        return side.score(h, n, k) / kTeacherTemperature + prototype[side.first(h) + k];
      };
      double sum = 0;
      for (int64_t k = 0; k < side.columns(h); ++k) sum += std::exp(exponent(k));
      row[h * c.n_rows + n] = -std::log(sum);
      for (int64_t k = 0; k < side.columns(h); ++k) {
        mass[side.first(h) + k] += std::exp(exponent(k)) / sum;
      }
    }
  }
  const std::vector<float> potentials(prototype.begin(), prototype.end());
  Guarded<float> a(potentials), own_maximum(side.total()), own_total(side.total());
  Guarded<float> own_row(static_cast<int64_t>(row.size())), own_mass(side.total());
  Guarded<char> first(cuda::streamed_column_workspace(side.view(), c.n_valid));
  Guarded<char> second(cuda::streamed_row_step_workspace(side.view(), c.n_valid));
  for (int repeat = 0; repeat < 2; ++repeat) {
    const auto before = own_mass.values();
    cuda::streamed_column_logsumexp(side.view(), kTeacherTemperature, c.n_valid, own_maximum.data(),
                                    own_total.data(), first.data(), first.size(), nullptr);
    cuda::streamed_row_step(side.view(), kTeacherTemperature, a.data(), c.n_valid, own_row.data(),
                            own_mass.data(), second.data(), second.size(), nullptr);
    if (repeat == 1) expect_same("mass", before, own_mass.values());
  }
  expect_close("maximum", own_maximum.values(), maximum, 2e-6, 2e-5);
  expect_close("total", own_total.values(), total, 5e-5, 0);
  expect_close("row", own_row.values(), row, 2e-6, 5e-5);
  expect_close("mass", own_mass.values(), mass, 1e-4, 1e-30);
}

void test_loss(const Case& c, uint64_t seed, int64_t n_teacher_rows, int64_t n_targets) {
  set_context("loss, " + c.name());
  emulation::device().multiprocessors = c.multiprocessors;
  emulation::set_seed(seed);
  const Side student(c, c.n_rows, seed), teacher(c, n_teacher_rows, seed + 1);
  std::mt19937_64 generator(seed);
  std::uniform_real_distribution<float> uniform(0.2f, 1.0f);
  std::vector<int64_t> rows;
  std::vector<float> prototype, row, weights, grad_loss;
  for (int64_t k = 0; k < teacher.total(); ++k) prototype.push_back(-uniform(generator));
  for (int64_t m = 0; m < c.n_rows; ++m) {
    weights.push_back(uniform(generator));
    for (int64_t p = 0; p < n_targets; ++p) rows.push_back(generator() % n_teacher_rows);
  }
  std::vector<std::vector<double>> q(teacher.n_heads());  // assignments of the teacher rows
  for (int64_t h = 0; h < teacher.n_heads(); ++h) {
    grad_loss.push_back(2.0f - uniform(generator));
    for (int64_t n = 0; n < n_teacher_rows; ++n) {
      std::vector<double> x(teacher.columns(h));
      double sum = 0;
      for (int64_t k = 0; k < teacher.columns(h); ++k) {
        x[k] = teacher.score(h, n, k) / kTeacherTemperature + prototype[teacher.first(h) + k];
        sum += std::exp(x[k]);
      }
      row.push_back(static_cast<float>(-std::log(sum)));
      for (double value : x) q[h].push_back(std::exp(value + row.back()));
    }
  }
  Guarded<float> a(prototype), b(row), w(weights), grad(grad_loss);
  Guarded<int64_t> teacher_rows(rows);
  const cuda::StreamedProblem problem{
      student.view(),      teacher.view(),      a.data(),  b.data(), kStudentTemperature,
      kTeacherTemperature, teacher_rows.data(), n_targets, w.data()};
  Guarded<float> loss(student.n_heads()), lse(student.n_heads() * c.n_rows);
  Guarded<char> workspace(cuda::streamed_forward_workspace(problem));
  cuda::streamed_forward(problem, loss.data(), lse.data(), workspace.data(), workspace.size(),
                         nullptr);
  std::vector<double> expected_loss, expected_lse;
  const int64_t h_gradient = student.n_heads() - 1;
  const int64_t n_columns = student.columns(h_gradient);
  std::vector<double> expected_products, expected_scales(n_columns, 0.0);
  for (int64_t h = 0; h < student.n_heads(); ++h) {
    expected_loss.push_back(0);
    for (int64_t m = 0; m < c.n_rows; ++m) {
      std::vector<double> x(student.columns(h)), target(student.columns(h), 0.0);
      double sum = 0, agreement = 0;
      for (std::size_t k = 0; k < x.size(); ++k) {
        x[k] = student.score(h, m, static_cast<int64_t>(k)) / kStudentTemperature;
        sum += std::exp(x[k]);
        for (int64_t p = 0; p < n_targets; ++p) {
          target[k] += q[h][rows[m * n_targets + p] * student.columns(h) + static_cast<int64_t>(k)];
        }
        agreement += target[k] * x[k];
      }
      const double log_sum = std::log(sum), n = static_cast<double>(n_targets);
      expected_lse.push_back(log_sum);
      expected_loss[h] += weights[m] * (n * log_sum - agreement);
      if (h != h_gradient) continue;
      for (std::size_t k = 0; k < x.size(); ++k) {
        const auto column = static_cast<int64_t>(k);
        const double ds = grad_loss[h] * weights[m] / kStudentTemperature *
                          (n * std::exp(x[k] - log_sum) - target[k]);
        expected_products.push_back(ds * student.scale(h, column));
        expected_scales[k] += ds * student.product(h, m, column);
      }
    }
  }
  expect_close("loss", loss.values(), expected_loss, 2e-5, 1e-5);
  expect_close("lse", lse.values(), expected_lse, 5e-6, 1e-5);

  // The gradient of the last head alone, as the Python side asks for it.
  const auto one = [&](const cuda::ScoreSide& side) {
    return cuda::ScoreSide{side.features + h_gradient,
                           side.prototypes + h_gradient,
                           side.n_prototypes + h_gradient,
                           side.scales + h_gradient,
                           1,
                           side.n_rows,
                           side.dtype};
  };
  cuda::StreamedProblem last = problem;
  last.student = one(problem.student);
  last.teacher = one(problem.teacher);
  last.prototype = a.data() + student.first(h_gradient);
  last.row = b.data() + h_gradient * n_teacher_rows;
  const int64_t stride = n_columns + n_columns % 2, tiles = cuda::streamed_row_tiles(c.n_rows);
  Guarded<uint16_t> out(c.n_rows * stride);
  Guarded<float> partial(tiles * n_columns);
  cuda::streamed_gradient(last, grad.data() + h_gradient, lse.data() + h_gradient * c.n_rows,
                          out.data(), stride, partial.data(), nullptr);
  std::vector<float> products, scales(n_columns, 0.0f);
  for (int64_t m = 0; m < c.n_rows; ++m) {
    for (int64_t k = 0; k < n_columns; ++k) {
      products.push_back(static_cast<float>(fetch(out.data(), m * stride + k, c.dtype)));
    }
  }
  for (int64_t i = 0; i < partial.size(); ++i) scales[i % n_columns] += partial[i];
  const double epsilon = c.dtype == DType::bfloat16 ? 4e-3 : 5e-4;
  expect_close("gradient of the products", products, expected_products, epsilon, 2e-4);
  expect_close("gradient of the scales", scales, expected_scales, 1e-3, 1e-3);
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca;
  using namespace franca::testing;
  constexpr DType bf16 = DType::bfloat16, f16 = DType::float16;
  const Case small{bf16, {5, 37}, 24, 9, 7};
  const Case ragged{f16, {130, 2060}, 40, 3, 3};
  const Case tall{bf16, {70, 136}, 200, 150, 141, 0, 0, 40};
  const Case misaligned{f16, {130, 66}, 72, 5, 5, 3, 2};
  const Case padded{bf16, {64}, 272, 2, 2, 8};
  uint64_t seed = 1;
  const Case far_apart{bf16, {3}, 8, 3, 3, kFarApart};
  for (const Case& c : {far_apart, small, ragged, tall, misaligned, padded}) {
    test_scores(c, seed++, true);
    test_passes(c, seed++);
  }
  test_scores(small, seed++, false);
  test_passes({bf16, {64, 3}, 16, 3, 0}, seed++);
  test_loss(small, seed++, 4, 2);
  test_loss(ragged, seed++, 6, 1);
  test_loss(tall, seed++, 5, 2);
  test_loss(misaligned, seed++, 3, 3);
  std::puts("streamed clustering on the emulated device: passed");
  return 0;
}
