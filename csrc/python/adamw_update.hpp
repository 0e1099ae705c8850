// The tensors of an update as Python passes them, for CPU and CUDA.
#pragma once

#include <tuple>

#include "franca/adamw_update.hpp"
#include "python/bindings.hpp"

namespace franca::python {

// Of each tensor, one after the other: addresses of parameter, gradient, moments, step and teacher
// (0 for none), size and module. Of each tensor: learning rate and weight decay. Addresses of the
// clip factors (0 for none), their number, and of the flag. Both betas, eps and momentum.
using AdamWArguments = std::tuple<Numbers, std::vector<double>, Address, int64_t, Address,
                                  std::tuple<double, double, double, double>>;

// Kept alive for the time of a call.
struct AdamWTensors {
  explicit AdamWTensors(const AdamWArguments& arguments) {
    const auto& [numbers, rates, clip_factors, n_modules, finite, constants] = arguments;
    constexpr std::size_t kNumbers = 8, kRates = 2;
    const std::size_t n = numbers.size() / kNumbers;
    if (numbers.size() % kNumbers != 0 || rates.size() != n * kRates) {
      throw std::invalid_argument("tensors: eight numbers and two rates each are needed");
    }
    for (std::size_t i = 0; i < n; ++i) {
      const int64_t* x = numbers.data() + i * kNumbers;
      tensors.push_back({address<float>(x[0]), address<const float>(x[1]), address<float>(x[2]),
                         address<float>(x[3]), address<float>(x[4]), address<float>(x[5]), x[6],
                         rates[i * kRates], rates[i * kRates + 1], x[7]});
    }
    const auto& [beta1, beta2, eps, momentum] = constants;
    view = {tensors.data(), static_cast<int64_t>(n),     pointer<const float>(clip_factors),
            n_modules,      pointer<const bool>(finite), {beta1, beta2, eps, momentum}};
  }
  AdamWTensors(const AdamWTensors&) = delete;
  AdamWTensors& operator=(const AdamWTensors&) = delete;

  std::vector<UpdatedTensor> tensors;
  AdamWUpdate view{};

 private:
  template <class T>
  static T* address(int64_t number) {
    return pointer<T>(static_cast<Address>(number));
  }
};

}  // namespace franca::python
