// The CUDA kernels of weight-normalised prototypes, on the emulated device, against float64.
#include "fibers.hpp"
#include "franca/cuda/weight_norm.hpp"
#include "testing.hpp"
#include "weight_norm_case.hpp"

namespace franca::testing {
namespace {

void test_case(const WeightNormShape& shape, uint64_t seed) {
  set_context(shape.name());
  emulation::set_seed(seed);
  WeightNormCase c(shape, seed);
  cuda::normalize_prototypes(c.prototypes(), c.w(), shape.other, nullptr);
  c.check_normalized();
  for (bool with_scales : {false, true}) {
    cuda::prototype_gradients(c.prototypes(), c.gradients(with_scales), nullptr);
    c.check_gradients(with_scales);
  }
}

void test_over_itself() {
  const WeightNormShape shape{21, 70, DType::float32, DType::float32};
  set_context("gradients over those of the normalised prototypes");
  WeightNormCase apart(shape, 2), same(shape, 2);
  cuda::prototype_gradients(apart.prototypes(), apart.gradients(false), nullptr);
  PrototypeGradients gradients = same.gradients(false);
  gradients.dv = gradients.dw;
  cuda::prototype_gradients(same.prototypes(), gradients, nullptr);
  expect_same("the gradient", same.values_of(gradients.dw, shape.other),
              apart.values_of(apart.gradients(false).dv, shape.dtype));
}

}  // namespace
}  // namespace franca::testing

int main() {
  using namespace franca::testing;
  uint64_t seed = 1;
  for (const WeightNormShape& shape : weight_norm_shapes()) test_case(shape, seed++);
  test_over_itself();
}
