// How tensors cross from Python: as addresses and sizes. The wrappers in
// franca_fast/backends have checked shapes, dtypes and devices; the kernels check sizes.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "franca/views.hpp"

namespace franca::python {

using Address = std::uintptr_t;
using Numbers = std::vector<int64_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Heads as Python passes them: address, columns and row stride of each, one after the other.
inline std::vector<Head> unpack_heads(const Numbers& numbers) {
  if (numbers.size() % 3 != 0) throw std::invalid_argument("heads: three numbers each are needed");
  std::vector<Head> heads;
  heads.reserve(numbers.size() / 3);
  for (std::size_t i = 0; i < numbers.size(); i += 3) {
    heads.push_back(
        {pointer<void>(static_cast<Address>(numbers[i])), numbers[i + 1], numbers[i + 2]});
  }
  return heads;
}

inline RaggedLogits logits_of(const std::vector<Head>& heads, int64_t n_rows, int dtype) {
  return {heads.data(), static_cast<int64_t>(heads.size()), n_rows, static_cast<DType>(dtype)};
}

void bind_adamw_update(pybind11::module_& m);
void bind_sinkhorn(pybind11::module_& m);
void bind_clustering_cross_entropy(pybind11::module_& m);
void bind_swiglu(pybind11::module_& m);
void bind_varlen_attention(pybind11::module_& m);
void bind_weight_norm(pybind11::module_& m);
#if defined(FRANCA_CUDA)
void bind_cuda(pybind11::module_& m);
void bind_cuda_streamed(pybind11::module_& m);
void bind_cuda_attention(pybind11::module_& m);
void bind_cuda_weight_norm(pybind11::module_& m);
void bind_cuda_adamw(pybind11::module_& m);
#endif

}  // namespace franca::python
