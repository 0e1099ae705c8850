#include "franca/cuda/weight_norm.hpp"

#include <algorithm>
#include <stdexcept>

#include "cuda/logits.cuh"
#include "cuda/primitives/launch.cuh"

namespace franca::cuda {
namespace {

struct Matrices {
  Matrix v;
  Matrix w;   // w or dw
  Matrix dv;  // of gradients only
  int64_t count;
  const float* g;
};

// Both sums of a row, <v, v> and <v, w>, the same in all lanes.
struct RowSums {
  float square;
  float product;
};

template <class T, class U>
__device__ __forceinline__ RowSums sums_of_row(const T* v, const U* w, int64_t columns) {
  RowSums sums{0.0f, 0.0f};
  for (int64_t c = lane_index(); c < columns; c += kWarpSize) {
    const float x = to_float(v[c]);
    sums.square = fmaf(x, x, sums.square);
    sums.product = fmaf(x, to_float(w[c]), sums.product);
  }
  return {warp_sum(sums.square), warp_sum(sums.product)};
}

// One warp for each prototype: its second read of a row comes from the cache.
template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    normalize_prototypes_kernel(const __grid_constant__ Matrices matrices) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (k >= matrices.count) return;
  const T* v = row_of<const T>(matrices.v, k);
  U* w = row_of<U>(matrices.w, k);
  const int64_t columns = matrices.v.columns;
  const float scale = matrices.g[k] / sqrtf(sums_of_row(v, v, columns).square);
  for (int64_t c = lane_index(); c < columns; c += kWarpSize) assign(w[c], to_float(v[c]) * scale);
}

template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    prototype_gradients_kernel(const __grid_constant__ Matrices matrices, const float* dscale,
                               float* dg) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (k >= matrices.count) return;
  const T* v = row_of<const T>(matrices.v, k);
  const U* dw = row_of<const U>(matrices.w, k);
  T* dv = row_of<T>(matrices.dv, k);
  const int64_t columns = matrices.v.columns;
  const RowSums sums = sums_of_row(v, dw, columns);
  const float norm = sqrtf(sums.square), scale = matrices.g[k] / norm;
  const float length = (dscale != nullptr ? dscale[k] : sums.product) / norm;
  const float factor = dscale != nullptr ? 1.0f : scale, along = -length * (scale / norm);
  if (lane_index() == 0) dg[k] = length;
  // Each lane reads what it writes itself, so dv may be dw.
  for (int64_t c = lane_index(); c < columns; c += kWarpSize) {
    assign(dv[c], fmaf(along, to_float(v[c]), factor * to_float(dw[c])));
  }
}

void check(const Prototypes& prototypes, const Head& other, DType dtype) {
  const bool known =
      static_cast<unsigned>(prototypes.dtype) <= 2 && static_cast<unsigned>(dtype) <= 2;
  if (prototypes.count < 0 || !known || other.columns != prototypes.v.columns) {
    throw std::invalid_argument("prototypes: size, columns or dtypes that cannot be meant");
  }
}

// Calls run(T{}, U{}) with the types of v and of w.
template <class T, class Run>
void with_second_type(DType dtype, const Run& run) {
  if (dtype == DType::float32) return run(T{}, float{});
  if (dtype == DType::bfloat16) return run(T{}, BFloat16{});
  run(T{}, Float16{});
}
template <class Run>
void with_types(DType v, DType w, const Run& run) {
  if (v == DType::float32) return with_second_type<float>(w, run);
  if (v == DType::bfloat16) return with_second_type<BFloat16>(w, run);
  with_second_type<Float16>(w, run);
}

LaunchShape shape_of(const Prototypes& prototypes) {
  return {grid_of(divide_up(prototypes.count, kWarps)), kThreads};
}

}  // namespace

void normalize_prototypes(const Prototypes& prototypes, const Head& w, DType dtype, void* stream) {
  check(prototypes, w, dtype);
  if (prototypes.count == 0) return;
  const Matrices matrices{make_matrix(prototypes.v, prototypes.dtype),
                          make_matrix(w, dtype),
                          {},
                          prototypes.count,
                          prototypes.g};
  with_types(prototypes.dtype, dtype, [&](auto t, auto u) {
    launch(normalize_prototypes_kernel<decltype(t), decltype(u)>, shape_of(prototypes), stream,
           matrices);
  });
}

void prototype_gradients(const Prototypes& prototypes, const PrototypeGradients& gradients,
                         void* stream) {
  check(prototypes, gradients.dw, gradients.dtype);
  check(prototypes, gradients.dv, prototypes.dtype);
  if (prototypes.count == 0) return;
  const Matrices matrices{
      make_matrix(prototypes.v, prototypes.dtype), make_matrix(gradients.dw, gradients.dtype),
      make_matrix(gradients.dv, prototypes.dtype), prototypes.count, prototypes.g};
  with_types(prototypes.dtype, gradients.dtype, [&](auto t, auto u) {
    launch(prototype_gradients_kernel<decltype(t), decltype(u)>, shape_of(prototypes), stream,
           matrices, gradients.dscale, gradients.dg);
  });
}

}  // namespace franca::cuda
