#include "franca/cuda/adamw_update.hpp"

#include "cuda/adamw_elements.cuh"
#include "cuda/primitives/launch.cuh"
#include "franca/adamw_factors.hpp"

namespace franca::cuda {
namespace {

// A thread for each tensor.
__global__ void __launch_bounds__(kTensorsPerLaunch)
    adamw_factors_kernel(const __grid_constant__ AdamWRates rates, AdamWInputs in) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= rates.n_tensors || !*in.finite) return;
  const auto& tensor = rates.tensor[i];
  const float step = *tensor.step + 1.0f;
  *tensor.step = step;
  const float clip = in.clip_factors != nullptr ? in.clip_factors[tensor.module] : 1.0f;
  in.factors[rates.first + i] =
      adamw_factors(in.constants, clip, tensor.lr, tensor.weight_decay, step);
}

// Blocks go over the elements of all tensors.
__global__ void __launch_bounds__(kAdamWThreads)
    adamw_kernel(const __grid_constant__ AdamWStreams streams, AdamWInputs in) {
  if (!*in.finite) return;
  const int64_t block = blockIdx.x;
  int i = streams.n_tensors - 1;
  while (streams.tensor[i].first_block > block) --i;
  const AdamWStream x = streams.tensor[i];
  const AdamWFactors f = in.factors[streams.first + i];
  const int64_t begin = (block - x.first_block) * kElementsPerBlock;
  const bool vectors = has_vectors(x);
  for (int turn = 0; turn < kPacksPerThread; ++turn) {
    const int64_t at =
        begin + (turn * kAdamWThreads + static_cast<int>(threadIdx.x)) * kPack<float>;
    if (vectors && at + kPack<float> <= x.size) {
      adamw_pack(x, f, at);
      continue;
    }
    for (int64_t k = at; k < at + kPack<float> && k < x.size; ++k) adamw_single(x, f, k);
  }
}

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
