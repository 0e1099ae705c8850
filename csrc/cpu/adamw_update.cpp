#include "franca/adamw_update.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/tile_kernels.hpp"
#include "franca/adamw_factors.hpp"

namespace franca::cpu {
namespace {

// Elements of a task: five arrays of it are little beside the last cache, and its start is cheap.
constexpr int64_t kTaskElements = 1 << 15;
// Tensors begin at multiples of this in the sequence that tasks are cut from, so that tasks begin
// within them where vectors are aligned.
constexpr int64_t kAlignment = 16;

[[noreturn]] void fail(int64_t tensor, const char* what) {
  throw std::invalid_argument("tensors[" + std::to_string(tensor) + "] " + what);
}

void check(const AdamWUpdate& update) {
  if (update.finite == nullptr) throw std::invalid_argument("finite has no memory");
  for (int64_t i = 0; i < update.n_tensors; ++i) {
    const UpdatedTensor& t = update.tensors[i];
    if (t.size < 0) fail(i, "has a negative size");
    if (t.step == nullptr) fail(i, "has no step");
    if (t.size > 0 && (t.parameter == nullptr || t.gradient == nullptr || t.exp_avg == nullptr ||
                       t.exp_avg_sq == nullptr)) {
      fail(i, "has no memory");
    }
    if (update.clip_factors != nullptr && (t.module < 0 || t.module >= update.n_modules)) {
      fail(i, "is of a module without a clip factor");
    }
  }
}

}  // namespace

void adamw_update(const AdamWUpdate& update, int threads) {
  check(update);
  if (!*update.finite) return;
  std::vector<AdamWFactors> factors;
  std::vector<int64_t> starts{0};
  for (int64_t i = 0; i < update.n_tensors; ++i) {
    const UpdatedTensor& tensor = update.tensors[i];
    *tensor.step += 1.0f;
    const float clip = update.clip_factors != nullptr ? update.clip_factors[tensor.module] : 1.0f;
    factors.push_back(adamw_factors(update.constants, clip, tensor.lr, tensor.weight_decay,
                                    static_cast<double>(*tensor.step)));
    starts.push_back(starts.back() + (tensor.size + kAlignment - 1) / kAlignment * kAlignment);
  }
  const int64_t total = starts.back();
  const auto adamw = tile_kernels().adamw;
  const auto task = [&](int64_t number) {
    const int64_t begin = number * kTaskElements, end = std::min(total, begin + kTaskElements);
    auto i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; starts[i] < end; ++i) {
      const UpdatedTensor& tensor = update.tensors[i];
      const int64_t first = std::max<int64_t>(begin - starts[i], 0);
      const int64_t last = std::min(end - starts[i], tensor.size);
      if (first < last) adamw(tensor, first, last - first, factors[i]);
    }
  };
  run_tasks((total + kTaskElements - 1) / kTaskElements, useful_threads(threads, total), task);
}

}  // namespace franca::cpu
