// Weight-normalised prototypes as Python passes them, for CPU and CUDA.
#pragma once

#include <tuple>

#include "franca/weight_norm.hpp"
#include "python/bindings.hpp"

namespace franca::python {

// Address, columns and row stride of a matrix, and the code of its dtype.
using MatrixNumbers = std::tuple<Numbers, int>;

inline Head unpack_matrix(const MatrixNumbers& matrix) {
  const std::vector<Head> heads = unpack_heads(std::get<0>(matrix));
  if (heads.size() != 1) throw std::invalid_argument("a matrix: three numbers are needed");
  return heads[0];
}

inline DType dtype_of(const MatrixNumbers& matrix) {
  return static_cast<DType>(std::get<1>(matrix));
}

inline Prototypes unpack_prototypes(const MatrixNumbers& v, Address g, int64_t count) {
  return {unpack_matrix(v), dtype_of(v), pointer<const float>(g), count};
}

inline PrototypeGradients unpack_gradients(const MatrixNumbers& dw, Address dscale,
                                           const MatrixNumbers& dv, Address dg) {
  return {unpack_matrix(dw), dtype_of(dw), pointer<const float>(dscale), unpack_matrix(dv),
          pointer<float>(dg)};
}

}  // namespace franca::python
