// Weight-normalised prototypes and their gradient on a CUDA device; the equations are those of
// franca/weight_norm.hpp. What holds for pointers and errors is said in franca/cuda/sinkhorn.hpp.
#pragma once

#include "franca/weight_norm.hpp"

namespace franca::cuda {

void normalize_prototypes(const Prototypes& prototypes, const Head& w, DType dtype, void* stream);

void prototype_gradients(const Prototypes& prototypes, const PrototypeGradients& gradients,
                         void* stream);

}  // namespace franca::cuda
