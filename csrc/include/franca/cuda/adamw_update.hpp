// AdamW and the teacher's moving average on a CUDA device; the equations are those of
// franca/adamw_update.hpp, what holds for pointers and errors is said in franca/cuda/sinkhorn.hpp.
// The list of tensors is memory of the host.
#pragma once

#include <cstddef>

#include "franca/adamw_update.hpp"

namespace franca::cuda {

std::size_t adamw_workspace(int64_t n_tensors);

void adamw_update(const AdamWUpdate& update, void* workspace, std::size_t workspace_bytes,
                  void* stream);

}  // namespace franca::cuda
