#include "franca/cuda/adamw_update.hpp"

#include "cuda/adamw_kernels.cuh"
#include "cuda/primitives/launch.cuh"

namespace franca::cuda {
namespace {

void check(const AdamWUpdate& update) {
  for (int64_t i = 0; i < update.n_tensors; ++i) {
    const UpdatedTensor& tensor = update.tensors[i];
    if (tensor.size < 0) throw std::invalid_argument("tensors: a negative size");
    const bool known = tensor.module >= 0 && tensor.module < update.n_modules;
    if (update.clip_factors != nullptr && !known) {
      throw std::invalid_argument("tensors: a module without a clip factor");
    }
  }
}

}  // namespace

std::size_t adamw_workspace(int64_t n_tensors) {
  return static_cast<std::size_t>(n_tensors) * sizeof(AdamWFactors);
}

void adamw_update(const AdamWUpdate& update, void* workspace, std::size_t workspace_bytes,
                  void* stream) {
  check(update);
  if (workspace_bytes < adamw_workspace(update.n_tensors)) {
    throw std::invalid_argument("workspace: too small");
  }
  auto* factors = static_cast<AdamWFactors*>(workspace);
  const AdamWInputs inputs{update.constants, update.clip_factors, update.finite, factors};
  for (int64_t first = 0; first < update.n_tensors; first += kTensorsPerLaunch) {
    AdamWRates rates{};
    AdamWStreams streams{};
    const auto left =
        static_cast<int>(update.n_tensors - first < kTensorsPerLaunch ? update.n_tensors - first
                                                                      : kTensorsPerLaunch);
    rates.n_tensors = streams.n_tensors = left;
    rates.first = streams.first = first;
    int64_t n_blocks = 0;
    for (int i = 0; i < left; ++i) {
      const UpdatedTensor& t = update.tensors[first + i];
      rates.tensor[i] = {t.step, t.lr, t.weight_decay, t.module};
      streams.tensor[i] = {t.parameter, t.gradient, t.exp_avg, t.exp_avg_sq,
                           t.teacher,   t.size,     n_blocks};
      n_blocks += divide_up(t.size, int64_t{kElementsPerBlock});
    }
    launch(adamw_factors_kernel, {dim3(1), kTensorsPerLaunch}, stream, rates, inputs);
    if (n_blocks == 0) continue;
    launch(adamw_kernel, {dim3(static_cast<unsigned>(n_blocks)), kAdamWThreads}, stream, streams,
           inputs);
  }
}

}  // namespace franca::cuda
