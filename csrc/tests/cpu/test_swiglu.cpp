// SwiGLU on a CPU against float64.
#include <cmath>

#include "cpu_testing.hpp"
#include "franca/swiglu.hpp"

namespace franca::testing {
namespace {

struct Shape {
  int64_t n_rows;
  int64_t width;
  DType dtype = DType::float32;
  int64_t padding = 0;
  std::size_t misalign = 0;
  double spread = 4.0;
};

// Rows in guarded memory, of which results are NaN until they are written.
class Case {
 public:
  explicit Case(const Shape& shape)
      : shape_(shape),
        h_(matrix(2 * shape.width, shape.spread), 1),
        dout_(matrix(shape.width, 1.0), 2),
        out_(matrix(shape.width, 1.0), 3),
        dh_(matrix(2 * shape.width, 1.0), 4) {
    for (const Head& result : {head(out_), head(dh_)}) {
      for (int64_t n = 0; n < shape.n_rows; ++n) {
        for (int64_t c = 0; c < result.columns; ++c) {
          store(result.data, n * result.row_stride + c, NAN, shape.dtype);
        }
      }
    }
  }

  Head h() const { return head(h_); }
  Head dout() const { return head(dout_); }
  Head out() const { return head(out_); }
  Head dh() const { return head(dh_); }
  void set_h(int64_t n, int64_t c, double value) { h_.set(0, n, c, value); }

  // Fails unless both results are right; returns them.
  std::vector<std::vector<float>> check() const {
    std::vector<double> products, gradients;
    for (int64_t n = 0; n < shape_.n_rows; ++n) {
      for (int64_t c = 0; c < shape_.width; ++c) {
        products.push_back(silu(n, c) * h_.at(0, n, shape_.width + c));
      }
      for (int64_t c = 0; c < shape_.width; ++c) {
        const double g = h_.at(0, n, c), s = sigmoid(g);
        const double slope = s == 0.0 ? 0.0 : s * (1.0 + g * (1.0 - s));
        gradients.push_back(dout_.at(0, n, c) * h_.at(0, n, shape_.width + c) * slope);
      }
      for (int64_t c = 0; c < shape_.width; ++c) {
        gradients.push_back(dout_.at(0, n, c) * silu(n, c));
      }
    }
    const double rounding = shape_.dtype == DType::float32    ? 1e-6
                            : shape_.dtype == DType::bfloat16 ? 0x1.1p-8
                                                              : 0x1.1p-11;
    const std::vector<std::vector<float>> found{values_of(out()), values_of(dh())};
    expect_close("out", found[0], products, rounding, 1e-6);
    expect_close("dh", found[1], gradients, rounding, 2e-6);
    for (const RaggedMatrices* m : {&h_, &dout_, &out_, &dh_}) m->check_surroundings();
    return found;
  }

 private:
  RaggedCase matrix(int64_t columns, double spread) const {
    return {{columns}, shape_.n_rows, shape_.dtype, shape_.padding, shape_.misalign, spread};
  }
  static Head head(const RaggedMatrices& matrix) { return matrix.view().heads[0]; }
  static double sigmoid(double g) { return 1.0 / (1.0 + std::exp(-g)); }
  double silu(int64_t n, int64_t c) const { return h_.at(0, n, c) * sigmoid(h_.at(0, n, c)); }
  std::vector<float> values_of(const Head& matrix) const {
    std::vector<float> values;
    for (int64_t n = 0; n < shape_.n_rows; ++n) {
      for (int64_t c = 0; c < matrix.columns; ++c) {
        values.push_back(
            static_cast<float>(fetch(matrix.data, n * matrix.row_stride + c, shape_.dtype)));
      }
    }
    return values;
  }

  Shape shape_;
  RaggedMatrices h_, dout_, out_, dh_;
};

std::vector<std::vector<float>> results(const Case& c, const Shape& shape, int threads) {
  cpu::swiglu(c.h(), c.out(), shape.n_rows, shape.dtype, threads);
  cpu::swiglu_gradient(c.h(), c.dout(), c.dh(), shape.n_rows, shape.dtype, threads);
  return c.check();
}

void test_shape(const Shape& shape) {
  const std::string name = std::to_string(shape.n_rows) + " rows, width " +
                           std::to_string(shape.width) + ", dtype " +
                           std::to_string(static_cast<int>(shape.dtype));
  for_isas(name, [&](int threads) { return results(Case(shape), shape, threads); });
}

void test_extreme_gates() {
  const Shape shape{2, 37};
  for_isas("extreme gates", [&](int threads) {
    Case c(shape);
    const double gates[] = {-3e38, -1e30, -200.0, -88.4, -87.0, -0.0, 0.0, 87.0, 88.4, 200.0, 1e30};
    for (int64_t i = 0; i < shape.width; ++i) c.set_h(1, i, gates[i % 11]);
    return results(c, shape, threads);
  });
}

void test_refusals() {
  const Shape shape{4, 8};
  Case c(shape);
  const auto forward = [&](const Head& h, const Head& out, int64_t n_rows = 4, int dtype = 0) {
    cpu::swiglu(h, out, n_rows, static_cast<DType>(dtype), 1);
  };
  const auto changed = [](Head head, auto change) {
    change(head);
    return head;
  };
  const Head odd = changed(c.h(), [](Head& head) { head.columns = 15; });
  expect_refusal("an odd width", [&] { forward(odd, c.out()); });
  expect_refusal("columns that differ", [&] { forward(c.h(), c.h()); });
  expect_refusal("negative rows", [&] { forward(c.h(), c.out(), -1); });
  expect_refusal("an unknown dtype", [&] { forward(c.h(), c.out(), 4, 3); });
  const Head nowhere = changed(c.dh(), [](Head& head) { head.data = nullptr; });
  expect_refusal("nowhere to go",
                 [&] { cpu::swiglu_gradient(c.h(), c.dout(), nowhere, 4, DType::float32, 1); });
  expect_refusal("a gradient of another width",
                 [&] { cpu::swiglu_gradient(c.h(), c.dh(), c.dh(), 4, DType::float32, 1); });
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca::testing;
  using franca::DType;
  for (DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    const auto element = static_cast<std::size_t>(franca::size_of(dtype));
    for (int64_t width : {1, 7, 16, 17, 63, 64, 83}) test_shape({5, width, dtype});
    test_shape({0, 5, dtype});
    test_shape({900, 88, dtype});
    test_shape({3, 20000, dtype});
    test_shape({6, 37, dtype, 3, element});
  }
  test_extreme_gates();
  test_refusals();
}
