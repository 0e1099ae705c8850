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
  std::size_t shared_kib = 227;
  bool warpgroups = true;

  std::string name() const {
    return "rows " + std::to_string(n_rows) + ", depth " + std::to_string(depth) + ", prototypes " +
           std::to_string(prototypes[0]) + ", dtype " + std::to_string(static_cast<int>(dtype)) +
           ", padding " + std::to_string(padding) + (warpgroups ? ", by warpgroups" : ", by warps");
  }
};

// What the emulated device has to be, and what a failure is told of.
void prepare(const char* what, const Case& c, uint64_t seed) {
  set_context(std::string(what) + ", " + c.name());
  emulation::device().multiprocessors = c.multiprocessors;
  emulation::device().max_shared_bytes = c.shared_kib * 1024;
  emulation::set_seed(seed);
}

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
             c.dtype,
             c.warpgroups};
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
  prepare("scores", c, seed);
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
  cuda::prototype_scores(view, out.view().heads, nullptr);
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
  }
  out.check_surroundings();
}

void test_passes(const Case& c, uint64_t seed) {
  prepare("passes", c, seed);
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
  // Twice, but not where there is much to do.
  const int repeats = side.total() < 1000 ? 2 : 1;
  for (int repeat = 0; repeat < repeats; ++repeat) {
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

struct LossShape {
  int64_t n_teacher_rows;
  int64_t n_targets;
  int64_t part_columns = 1000;  // of the gradient, at a time
  int64_t teacher_depth = 0;    // that of the student where it is 0
  float shift = 0.0f;           // of the prototype potentials
};

// Inputs of the loss that are no factors, and what it should be in float64.
class Loss {
 public:
  Loss(const Case& c, const LossShape& shape, const Side& student, const Side& teacher,
       uint64_t seed)
      : shape_(shape), student_(student), n_rows_(c.n_rows) {
    std::mt19937_64 generator(seed);
    std::uniform_real_distribution<float> uniform(0.2f, 1.0f);
    for (int64_t k = 0; k < teacher.total(); ++k) {
      prototype.push_back(shape.shift - uniform(generator));
    }
    for (int64_t m = 0; m < c.n_rows; ++m) {
      weights.push_back(uniform(generator));
      for (int64_t p = 0; p < shape.n_targets; ++p) {
        teacher_rows.push_back(static_cast<int64_t>(generator() % shape.n_teacher_rows));
      }
    }
    for (int64_t h = 0; h < teacher.n_heads(); ++h) {
      grad_loss.push_back(2.0f - uniform(generator));
      assign(h, teacher);
    }
    for (int64_t h = 0; h < student.n_heads(); ++h) expect(h);
  }

  std::vector<float> prototype, row, weights, grad_loss;
  std::vector<int64_t> teacher_rows;
  // Of all heads; the gradients are those of the last one.
  std::vector<double> loss, lse, products, scales;

 private:
  // Potentials of the teacher rows and their assignments.
  void assign(int64_t h, const Side& teacher) {
    q_.emplace_back();
    for (int64_t n = 0; n < shape_.n_teacher_rows; ++n) {
      std::vector<double> x(teacher.columns(h));
      double sum = 0;
      for (int64_t k = 0; k < teacher.columns(h); ++k) {
        x[k] = teacher.score(h, n, k) / kTeacherTemperature + prototype[teacher.first(h) + k];
        sum += std::exp(x[k]);
      }
      row.push_back(static_cast<float>(-std::log(sum)));
      for (double value : x) q_.back().push_back(std::exp(value + row.back()));
    }
  }

  void expect(int64_t h) {
    const int64_t n_columns = student_.columns(h);
    const auto n = static_cast<double>(shape_.n_targets);
    loss.push_back(0);
    products.clear();
    scales.assign(n_columns, 0.0);
    for (int64_t m = 0; m < n_rows_; ++m) {
      std::vector<double> x(n_columns), target(n_columns, 0.0);
      double sum = 0, agreement = 0;
      for (int64_t k = 0; k < n_columns; ++k) {
        x[k] = student_.score(h, m, k) / kStudentTemperature;
        sum += std::exp(x[k]);
        for (int64_t p = 0; p < shape_.n_targets; ++p) {
          target[k] += q_[h][teacher_rows[m * shape_.n_targets + p] * n_columns + k];
        }
        agreement += target[k] * x[k];
      }
      lse.push_back(std::log(sum));
      loss[h] += weights[m] * (n * lse.back() - agreement);
      for (int64_t k = 0; k < n_columns; ++k) {
        const double ds = grad_loss[h] * weights[m] / kStudentTemperature *
                          (n * std::exp(x[k] - lse.back()) - target[k]);
        products.push_back(ds * student_.scale(h, k));
        scales[k] += ds * student_.product(h, m, k);
      }
    }
  }

  LossShape shape_;
  const Side& student_;
  int64_t n_rows_;
  std::vector<std::vector<double>> q_;  // of each head
};

void test_loss(const Case& c, uint64_t seed, const LossShape& shape) {
  prepare("loss", c, seed);
  Case of_teacher = c;
  if (shape.teacher_depth > 0) of_teacher.depth = shape.teacher_depth;
  const Side student(c, c.n_rows, seed), teacher(of_teacher, shape.n_teacher_rows, seed + 1);
  const Loss expected(c, shape, student, teacher, seed);
  Guarded<float> a(expected.prototype), b(expected.row), w(expected.weights);
  Guarded<float> grad(expected.grad_loss);
  Guarded<int64_t> teacher_rows(expected.teacher_rows);
  const cuda::StreamedProblem problem{
      student.view(),      teacher.view(),      a.data(),        b.data(), kStudentTemperature,
      kTeacherTemperature, teacher_rows.data(), shape.n_targets, w.data()};
  Guarded<float> loss(student.n_heads()), lse(student.n_heads() * c.n_rows);
  Guarded<char> workspace(cuda::streamed_forward_workspace(problem));
  cuda::streamed_forward(problem, loss.data(), lse.data(), workspace.data(), workspace.size(),
                         nullptr);
  expect_close("loss", loss.values(), expected.loss, 2e-5, 1e-5);
  expect_close("lse", lse.values(), expected.lse, 5e-6, 1e-5);

  // The gradient of the last head, in parts as the Python side asks for it.
  const int64_t head = student.n_heads() - 1, n_columns = student.columns(head);
  const int64_t stride = n_columns + c.padding;
  Guarded<uint16_t> out(c.n_rows * stride, c.misalign);
  Guarded<float> scales(n_columns);
  for (int64_t first = 0, columns; first < n_columns; first += columns) {
    columns = std::min(shape.part_columns, n_columns - first);
    Guarded<char> memory(cuda::streamed_gradient_workspace(c.n_rows, columns));
    cuda::streamed_gradient(problem, {head, first, columns}, grad.data(), lse.data(),
                            out.data() + first, stride, scales.data() + first, memory.data(),
                            memory.size(), nullptr);
  }
  std::vector<float> products;
  for (int64_t m = 0; m < c.n_rows; ++m) {
    for (int64_t k = 0; k < n_columns; ++k) {
      products.push_back(static_cast<float>(fetch(out.data(), m * stride + k, c.dtype)));
    }
    for (int64_t k = n_columns; k < stride; ++k) {
      if (out[m * stride + k] != 0xffff) fail("the gradient was written beyond its columns");
    }
  }
  const double epsilon = c.dtype == DType::bfloat16 ? 4e-3 : 5e-4;
  expect_close("gradient of the products", products, expected.products, epsilon, 2e-4);
  expect_close("gradient of the scales", scales.values(), expected.scales, 1e-3, 1e-3);
}

// A device without the instructions, or without code for them, is asked for nothing else.
// Warpgroups multiply where that is asked for and offered, and nowhere else.
void test_choice_of_form(const Case& c, uint64_t seed) {
  std::vector<std::vector<uint16_t>> results;
  constexpr struct {
    bool offered, asked;
  } kRounds[] = {{true, false}, {false, true}, {true, true}};
  for (const auto& round : kRounds) {
    Case asked = c;
    asked.warpgroups = round.asked;
    prepare("choice of the form", asked, seed);
    emulation::device().warpgroup_products = round.offered;
    if (cuda::offers_warpgroups() != round.offered) fail("what the device offers is not noticed");
    const Side side(asked, c.n_rows, seed);
    Guarded<uint16_t> out(c.n_rows * c.prototypes[0]);
    const Head head{out.data(), c.prototypes[0], c.prototypes[0]};
    emulation::device().products = 0;
    cuda::prototype_scores(side.view(), &head, nullptr);
    if ((emulation::device().products > 0) != (round.offered && round.asked)) {
      fail("products of warpgroups: asked, offered and done do not agree");
    }
    results.push_back(out.values());
  }
  emulation::device().warpgroup_products = true;
  expect_same("the scores", results[0], results[1]);
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca;
  using namespace franca::testing;
  constexpr DType bf16 = DType::bfloat16, f16 = DType::float16;
  const Case small{bf16, {5, 37}, 21, 9, 7, 3};
  const Case ragged{f16, {130, 2060}, 40, 3, 3};
  const Case tall{bf16, {70, 136}, 200, 150, 141, 0, 0, 40};
  const Case misaligned{f16, {130, 66}, 70, 5, 5, 3, 2};
  const Case padded{bf16, {64}, 272, 2, 2, 8};
  const Case far_apart{bf16, {3}, 8, 3, 3, kFarApart};
  uint64_t seed = 1;
  const auto in_both_forms = [&](Case c, const auto& test) {
    for (bool warpgroups : {true, false}) {
      c.warpgroups = warpgroups;
      test(c, seed++);
    }
  };
  const auto scores = [](const Case& c, uint64_t s) { test_scores(c, s, true); };
  // What is quick comes first, so that defects are noticed soon.
  in_both_forms(small, scores);
  in_both_forms(small, [](const Case& c, uint64_t s) { test_scores(c, s, false); });
  in_both_forms(small, test_passes);
  in_both_forms(small, [](const Case& c, uint64_t s) { test_loss(c, s, {4, 2, 1000, 0, 130.0f}); });
  in_both_forms(padded, scores);
  in_both_forms(padded, [](const Case& c, uint64_t s) { test_loss(c, s, {3, 1, 1000, 80}); });
  in_both_forms(misaligned, scores);
  in_both_forms(misaligned, [](const Case& c, uint64_t s) { test_loss(c, s, {3, 3}); });
  in_both_forms(misaligned, test_passes);
  in_both_forms(tall, scores);
  // A device with little shared memory, as there are that know warps only.
  in_both_forms({bf16, {300}, 136, 130, 130, 0, 0, 3, 108}, [](Case c, uint64_t s) {
    if (!c.warpgroups) c.shared_kib = 99;
    test_loss(c, s, {5, 1});
  });
  in_both_forms(tall, [](const Case& c, uint64_t s) { test_loss(c, s, {5, 2}); });
  in_both_forms(tall, test_passes);
  in_both_forms(ragged, scores);
  in_both_forms(ragged, [](const Case& c, uint64_t s) { test_loss(c, s, {6, 1, 1024}); });
  in_both_forms(ragged, test_passes);
  in_both_forms(padded, test_passes);
  in_both_forms({bf16, {64, 3}, 16, 3, 0}, test_passes);
  in_both_forms(far_apart, scores);
  in_both_forms(far_apart, test_passes);
  test_choice_of_form({bf16, {37}, 24, 9, 9}, seed++);
  std::puts("streamed clustering on the emulated device: passed");
  return 0;
}
