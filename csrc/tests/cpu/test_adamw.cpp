// The CPU kernel of AdamW and the teacher's average against float64.
#include "adamw_case.hpp"
#include "cpu_testing.hpp"

namespace franca::testing {
namespace {

void check(const AdamWCase& shape) {
  for_isas(shape.name, [&](int threads) {
    AdamWTensors tensors(shape);
    const auto expected = tensors.expected();
    const auto before = tensors.values();
    cpu::adamw_update(tensors.update(), threads);
    const auto after = tensors.values();
    expect_updated(after, expected);
    for (std::size_t i = 0; !shape.finite && i < after.size(); ++i) {
      expect_same("what a step that is left out changes", before[i], after[i]);
    }
    return after;
  });
}

void refusals() {
  const AdamWCase shape{"refusals", {3}};
  const auto refused = [&](const char* what, auto spoil) {
    AdamWTensors tensors(shape);
    spoil(tensors.tensors()[0]);
    expect_refusal(what, [&] { cpu::adamw_update(tensors.update(), 1); });
  };
  refused("a negative size", [](UpdatedTensor& t) { t.size = -1; });
  refused("no step", [](UpdatedTensor& t) { t.step = nullptr; });
  refused("no memory", [](UpdatedTensor& t) { t.exp_avg = nullptr; });
  refused("a module without a factor", [](UpdatedTensor& t) { t.module = 3; });
}

}  // namespace
}  // namespace franca::testing

int main() {
  using franca::testing::check;
  check({"ends of vectors", {1, 0, 7, 15, 16, 17, 31, 65, 0}});
  check({"tasks that end within tensors", {40000, 3, 70001, 32768, 1}});
  check({"misaligned", {5, 300, 1000, 33, 64}, 4});
  check({"without factors", {100, 3}, 0, false});
  check({"left out", {100, 3, 20}, 0, true, false});
  check({"no tensors", {}});
  franca::testing::refusals();
  return 0;
}
