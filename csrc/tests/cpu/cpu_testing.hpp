// What the tests of the CPU kernels share.
#pragma once

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "franca/isa.hpp"
#include "testing.hpp"

namespace franca::testing {

// Calls test() with every instruction set that runs here, and with 1 and 3 threads: results must
// have the same bits. `test` returns them as vectors of floats.
template <class Test>
void for_isas(const std::string& name, const Test& test) {
  for (cpu::Isa isa : cpu::available_isas()) {
    cpu::set_isa(cpu::isa_name(isa));
    set_context(std::string(cpu::isa_name(isa)) + ", " + name);
    const std::vector<std::vector<float>> results = test(1);
    const std::vector<std::vector<float>> again = test(3);
    for (std::size_t i = 0; i < results.size(); ++i) {
      expect_same("a result with 3 threads", results[i], again[i]);
    }
  }
}

template <class Call>
void expect_refusal(const char* what, const Call& call) {
  set_context(what);
  try {
    call();
  } catch (const std::invalid_argument&) {
    return;
  }
  fail("was not refused");
}

inline std::vector<float> to_float(const std::vector<double>& values) {
  return std::vector<float>(values.begin(), values.end());
}

// log sum_i exp(x[i])
inline double log_sum(const std::vector<double>& x) {
  double largest = -HUGE_VAL;
  for (double v : x) largest = std::max(largest, v);
  double sum = 0.0;
  for (double v : x) sum += std::exp(v - largest);
  return x.empty() ? -HUGE_VAL : largest + std::log(sum);
}

// Shapes that meet every path: single rows and columns, ends of vectors and of tiles, several
// chunks of rows, strides, misaligned memory, large logits.
inline std::vector<RaggedCase> shapes() {
  std::vector<RaggedCase> all;
  for (DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    const auto element = static_cast<std::size_t>(size_of(dtype));
    all.push_back({{1}, 1, dtype, 0, 0, 1.0});
    all.push_back({{3, 1, 17}, 2, dtype, 5, element, 1.0});
    all.push_back({{511, 512, 513, 64}, 5, dtype, 0, 0, 1.0});
    all.push_back({{1100, 40}, 21, dtype, 3, 3 * element, 2.0});
    all.push_back({{33, 130}, 150, dtype, 0, 0, 1.0});
    all.push_back({{700, 90}, 9, dtype, 0, element, 1e4});
    all.push_back({{7}, 0, dtype, 0, 0, 1.0});
  }
  return all;
}

}  // namespace franca::testing
