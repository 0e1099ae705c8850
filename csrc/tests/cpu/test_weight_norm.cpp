// Weight-normalised prototypes on a CPU against float64.
#include <cmath>

#include "cpu_testing.hpp"
#include "franca/weight_norm.hpp"
#include "weight_norm_case.hpp"

namespace franca::testing {
namespace {

void test_case(const WeightNormShape& shape) {
  for_isas(shape.name(), [&](int threads) {
    WeightNormCase c(shape, 1);
    cpu::normalize_prototypes(c.prototypes(), c.w(), shape.other, threads);
    std::vector<std::vector<float>> results{c.check_normalized()};
    for (bool with_scales : {false, true}) {
      cpu::prototype_gradients(c.prototypes(), c.gradients(with_scales), threads);
      const std::vector<std::vector<float>> found = c.check_gradients(with_scales);
      results.insert(results.end(), found.begin(), found.end());
    }
    return results;
  });
}

void test_over_itself() {
  const WeightNormShape shape{37, 70, DType::float32, DType::float32};
  WeightNormCase apart(shape, 2), same(shape, 2);
  cpu::prototype_gradients(apart.prototypes(), apart.gradients(false), 1);
  PrototypeGradients gradients = same.gradients(false);
  gradients.dv = gradients.dw;
  cpu::prototype_gradients(same.prototypes(), gradients, 2);
  set_context("gradients over those of the normalised prototypes");
  expect_same("the gradient", same.values_of(gradients.dw, shape.other),
              apart.values_of(apart.gradients(false).dv, shape.dtype));
}

void test_refusals() {
  const WeightNormShape shape{4, 8, DType::float32, DType::float32};
  WeightNormCase c(shape, 3);
  Head wide = c.w();
  wide.columns = 9;
  expect_refusal("columns that differ",
                 [&] { cpu::normalize_prototypes(c.prototypes(), wide, shape.other, 1); });
  expect_refusal("an unknown dtype", [&] {
    cpu::normalize_prototypes(c.prototypes(), c.w(), static_cast<DType>(3), 1);
  });
  Prototypes prototypes = c.prototypes();
  prototypes.g = nullptr;
  expect_refusal("no lengths",
                 [&] { cpu::normalize_prototypes(prototypes, c.w(), shape.other, 1); });
  PrototypeGradients gradients = c.gradients(false);
  gradients.dg = nullptr;
  expect_refusal("nowhere to go", [&] { cpu::prototype_gradients(c.prototypes(), gradients, 1); });
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca::testing;
  for (const WeightNormShape& shape : weight_norm_shapes()) test_case(shape);
  test_over_itself();
  test_refusals();
}
