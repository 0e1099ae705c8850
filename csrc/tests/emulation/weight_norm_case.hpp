// Weight-normalised prototypes in guarded memory, and what must come of them in float64.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "franca/weight_norm.hpp"
#include "testing.hpp"

namespace franca::testing {

struct WeightNormShape {
  int64_t count;
  int64_t columns;
  DType dtype;  // of v
  DType other;  // of w and dw
  int64_t padding = 0;
  std::size_t misalign = 0;
  double spread = 1.0;

  std::string name() const {
    return std::to_string(count) + " prototypes, columns " + std::to_string(columns) + ", dtypes " +
           std::to_string(static_cast<int>(dtype)) + " and " +
           std::to_string(static_cast<int>(other)) + ", padding " + std::to_string(padding);
  }
};

// Shapes that meet every path: none and one, ends of vectors and of tasks, strides, small numbers.
inline std::vector<WeightNormShape> weight_norm_shapes() {
  constexpr DType single = DType::float32, brain = DType::bfloat16, half = DType::float16;
  return {{1, 1, single, single},
          {0, 5, single, single},
          {70, 64, single, single},
          {130, 256, single, brain},
          {9, 37, single, half, 3, 4},
          {65, 100, brain, brain, 1, 2},
          {64, 16, half, half, 0, 2},
          {3, 261, half, half},
          {5, 31, single, single, 7, 4, 1e-3},
          {33, 8, single, brain, 0, 4, 30.0}};
}

class WeightNormCase {
 public:
  WeightNormCase(const WeightNormShape& shape, uint64_t seed)
      : shape_(shape),
        v_(matrix(shape.dtype, shape.spread), seed),
        w_(matrix(shape.other, 1.0), seed),
        dw_(matrix(shape.other, 1.0), seed + 1),
        dv_(matrix(shape.dtype, 1.0), seed),
        g_(shape.count),
        dscale_(shape.count),
        dg_(shape.count) {
    std::mt19937_64 generator(seed + 2);
    std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
    for (int64_t k = 0; k < shape.count; ++k) {
      g_[k] = uniform(generator);
      dscale_[k] = static_cast<float>(shape.spread) * (uniform(generator) - 1.0f);
    }
    poison(w_, shape.other);
    poison(dv_, shape.dtype);
  }

  Prototypes prototypes() const { return {head(v_), shape_.dtype, g_.data(), shape_.count}; }
  Head w() const { return head(w_); }
  PrototypeGradients gradients(bool with_scales) const {
    return {head(dw_), shape_.other, with_scales ? dscale_.data() : nullptr, head(dv_), dg_.data()};
  }

  std::vector<float> values_of(const Head& matrix, DType dtype) const {
    std::vector<float> values;
    for (int64_t k = 0; k < shape_.count; ++k) {
      for (int64_t c = 0; c < shape_.columns; ++c) {
        values.push_back(static_cast<float>(fetch(matrix.data, k * matrix.row_stride + c, dtype)));
      }
    }
    return values;
  }

  // Fails unless w is right; returns it.
  std::vector<float> check_normalized() const {
    std::vector<double> expected;
    for (int64_t k = 0; k < shape_.count; ++k) {
      const double scale = g_[k] / norm(k);
      for (int64_t c = 0; c < shape_.columns; ++c) expected.push_back(scale * v_.at(0, k, c));
    }
    const std::vector<float> values = values_of(w(), shape_.other);
    expect_close("w", values, expected, rounding(shape_.other), 1e-7);
    w_.check_surroundings();
    return values;
  }

  // Fails unless both gradients are right; returns and forgets them.
  std::vector<std::vector<float>> check_gradients(bool with_scales) {
    std::vector<double> lengths, expected;
    double largest = 0.0;
    for (int64_t k = 0; k < shape_.count; ++k) {
      const double scale = g_[k] / norm(k), factor = with_scales ? 1.0 : scale;
      double product = 0.0;
      for (int64_t c = 0; c < shape_.columns; ++c) product += v_.at(0, k, c) * dw_.at(0, k, c);
      lengths.push_back((with_scales ? dscale_[k] : product) / norm(k));
      for (int64_t c = 0; c < shape_.columns; ++c) {
        const double along = lengths.back() * scale / norm(k) * v_.at(0, k, c);
        expected.push_back(factor * dw_.at(0, k, c) - along);
        largest = std::max(largest, std::fabs(along) + std::fabs(factor * dw_.at(0, k, c)));
      }
    }
    const std::vector<float> dv = values_of(head(dv_), shape_.dtype), dg = dg_.values();
    // What cancels leaves the rounding of its terms.
    expect_close("dv", dv, expected, rounding(shape_.dtype), 1e-6 * largest);
    expect_close("dg", dg, lengths, 2e-6, 2e-6);
    dv_.check_surroundings();
    dg_.poison();
    poison(dv_, shape_.dtype);
    return {dv, dg};
  }

 private:
  RaggedCase matrix(DType dtype, double spread) const {
    return {{shape_.columns}, shape_.count, dtype, shape_.padding, shape_.misalign, spread};
  }
  static Head head(const RaggedMatrices& matrix) { return matrix.view().heads[0]; }
  static double rounding(DType dtype) {
    return dtype == DType::float32 ? 1e-6 : dtype == DType::bfloat16 ? 0x1.1p-8 : 0x1.1p-11;
  }
  void poison(const RaggedMatrices& matrix, DType dtype) const {
    for (int64_t k = 0; k < shape_.count; ++k) {
      for (int64_t c = 0; c < shape_.columns; ++c) {
        store(head(matrix).data, k * head(matrix).row_stride + c, NAN, dtype);
      }
    }
  }
  double norm(int64_t k) const {
    double square = 0.0;
    for (int64_t c = 0; c < shape_.columns; ++c) square += v_.at(0, k, c) * v_.at(0, k, c);
    return std::sqrt(square);
  }

  WeightNormShape shape_;
  RaggedMatrices v_, w_, dw_, dv_;
  Guarded<float> g_, dscale_, dg_;
};

}  // namespace franca::testing
