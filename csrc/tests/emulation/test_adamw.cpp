// The CUDA kernels of AdamW and the teacher's average on the emulated device, against float64.
#include "adamw_case.hpp"
#include "cuda/adamw_elements.cuh"
#include "fibers.hpp"
#include "franca/cuda/adamw_update.hpp"

namespace franca::testing {
namespace {

std::vector<std::vector<float>> updated(const AdamWCase& shape) {
  set_context(shape.name);
  AdamWTensors tensors(shape);
  const auto expected = tensors.expected();
  const auto before = tensors.values();
  const std::size_t bytes = cuda::adamw_workspace(static_cast<int64_t>(shape.sizes.size()));
  const GuardedMemory workspace(bytes);
  cuda::adamw_update(tensors.update(), workspace.data(), bytes, nullptr);
  workspace.check_surroundings();
  const auto after = tensors.values();
  expect_updated(after, expected);
  for (std::size_t i = 0; !shape.finite && i < after.size(); ++i) {
    expect_same("what a step that is left out changes", before[i], after[i]);
  }
  return after;
}

void check(const AdamWCase& shape) {
  const auto first = updated(shape), second = updated(shape);
  for (std::size_t i = 0; i < first.size(); ++i) expect_same("an array", first[i], second[i]);
}

}  // namespace
}  // namespace franca::testing

int main() {
  using franca::testing::check;
  const int64_t block = franca::cuda::kElementsPerBlock;
  check({"ends of packs", {1, 0, 7, 4, 5, 1023, 1024, 1030, 0}});
  check({"blocks", {block, 3, block + 1, 2 * block - 1, 3 * block}});
  check({"misaligned", {5, 300, 1000, 33, 64}, 4});
  check({"several launches", std::vector<int64_t>(2 * franca::cuda::kTensorsPerLaunch + 3, 6)});
  check({"a launch of nothing", std::vector<int64_t>(franca::cuda::kTensorsPerLaunch + 1, 0)});
  check({"without factors", {100, 3}, 0, false});
  check({"left out", {100, 3, 20}, 0, true, false});
  check({"no tensors", {}});
  return 0;
}
