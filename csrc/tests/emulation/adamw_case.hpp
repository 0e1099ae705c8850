// Tensors to update in guarded memory, and in float64 what becomes of them: for the kernels of both
// devices.
#pragma once

#include <cmath>
#include <memory>

#include "franca/adamw_update.hpp"
#include "testing.hpp"

namespace franca::testing {

struct AdamWCase {
  std::string name;
  std::vector<int64_t> sizes;
  std::size_t misalign = 0;  // bytes, of one array of every tensor
  bool clips = true;
  bool finite = true;
};

class AdamWTensors {
 public:
  explicit AdamWTensors(const AdamWCase& shape)
      : shape_(shape), clip_factors_({0.5f, 1.0f, 0.01f}), finite_(1) {
    finite_[0] = shape.finite;
    std::mt19937_64 generator(7);
    std::uniform_real_distribution<float> uniform(0.5f, 1.0f);
    for (std::size_t i = 0; i < shape.sizes.size(); ++i) {
      const int64_t size = shape.sizes[i];
      for (std::size_t a = 0; a < kArrays; ++a) {
        // Another array is misaligned in each tensor.
        arrays_.push_back(
            std::make_unique<Guarded<float>>(size, i % kArrays == a ? shape.misalign : 0));
        for (int64_t k = 0; k < size; ++k) {
          const float sign = a == kExpAvgSq || generator() % 2 == 0 ? 1.0f : -1.0f;
          (*arrays_.back())[k] = sign * uniform(generator) * (a == kExpAvgSq ? 1e-3f : 0.1f);
        }
      }
      steps_.push_back(std::make_unique<Guarded<float>>(std::vector<float>{float(3 * i)}));
      const bool teacher = i % 3 != 1;
      tensors_.push_back({at(i, kParameter).data(), at(i, kGradient).data(), at(i, kExpAvg).data(),
                          at(i, kExpAvgSq).data(), steps_.back()->data(),
                          teacher ? at(i, kTeacher).data() : nullptr, size, 0.02 * double(i + 1),
                          i % 2 == 0 ? 0.3 : 0.0, static_cast<int64_t>(i % 3)});
    }
  }

  AdamWUpdate update() const {
    return {tensors_.data(),
            static_cast<int64_t>(tensors_.size()),
            shape_.clips ? clip_factors_.data() : nullptr,
            clip_factors_.size(),
            finite_.data(),
            {0.9, 0.99, 1e-8, 0.75}};
  }

  // Everything that a kernel may change or must leave, one after the other.
  std::vector<std::vector<float>> values() const {
    std::vector<std::vector<float>> all;
    for (const auto& array : arrays_) all.push_back(array->values());
    for (const auto& step : steps_) all.push_back(step->values());
    return all;
  }

  // What values() should be after an update.
  std::vector<std::vector<double>> expected() const {
    std::vector<std::vector<double>> all;
    for (const auto& values : this->values()) all.emplace_back(values.begin(), values.end());
    if (!shape_.finite) return all;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const UpdatedTensor& tensor = tensors_[i];
      auto* arrays = &all[i * kArrays];
      const double n = all[kArrays * tensors_.size() + i][0] += 1.0;
      const double clip = shape_.clips ? double(clip_factors_[tensor.module]) : 1.0;
      for (int64_t k = 0; k < tensor.size; ++k) {
        const double g = clip * arrays[kGradient][k];
        double &p = arrays[kParameter][k], &m = arrays[kExpAvg][k], &v = arrays[kExpAvgSq][k];
        m = 0.9 * m + 0.1 * g;
        v = 0.99 * v + 0.01 * g * g;
        const double root = std::sqrt(v / (1.0 - std::pow(0.99, n))) + 1e-8;
        p = (1.0 - tensor.lr * tensor.weight_decay) * p;
        p -= tensor.lr * (m / (1.0 - std::pow(0.9, n))) / root;
        if (tensor.teacher != nullptr) {
          arrays[kTeacher][k] = 0.75 * arrays[kTeacher][k] + 0.25 * p;
        }
      }
    }
    return all;
  }

  std::vector<UpdatedTensor>& tensors() { return tensors_; }

 private:
  enum Array : std::size_t { kParameter, kGradient, kExpAvg, kExpAvgSq, kTeacher, kArrays };

  Guarded<float>& at(std::size_t tensor, Array array) const {
    return *arrays_[tensor * kArrays + array];
  }

  AdamWCase shape_;
  Guarded<float> clip_factors_;
  Guarded<bool> finite_;
  std::vector<std::unique_ptr<Guarded<float>>> arrays_, steps_;
  std::vector<UpdatedTensor> tensors_;
};

inline void expect_updated(const std::vector<std::vector<float>>& values,
                           const std::vector<std::vector<double>>& expected) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    expect_close("an array", values[i], expected[i], 1e-6, 1e-7);
  }
}

}  // namespace franca::testing
