#include "franca/weight_norm.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/parallel.hpp"
#include "cpu/tile_kernels.hpp"
#include "cpu/tiles.hpp"

namespace franca::cpu {
namespace {

constexpr int64_t kRowsOfTask = 64;

// A matrix [K, C] beside the prototypes.
void check_matrix(const Prototypes& prototypes, const Head& matrix, DType dtype, const char* name) {
  const std::string argument(name);
  const int code = static_cast<int>(dtype);
  if (code < 0 || code >= kDTypes) throw std::invalid_argument(argument + ": unknown dtype code");
  if (prototypes.count < 0 || prototypes.v.columns < 0) {
    throw std::invalid_argument("v: negative size");
  }
  if (matrix.columns != prototypes.v.columns || matrix.row_stride < 0) {
    throw std::invalid_argument(argument + ": columns or row stride do not fit v");
  }
  check_pointer(matrix.data, prototypes.count * matrix.columns, name);
}

char* row_of(const Head& matrix, DType dtype, int64_t k) {
  return static_cast<char*>(matrix.data) + k * matrix.row_stride * size_of(dtype);
}

// Calls row(k) for every prototype.
template <class Row>
void for_rows(const Prototypes& prototypes, int threads, const Row& row) {
  const int64_t n_tasks = (prototypes.count + kRowsOfTask - 1) / kRowsOfTask;
  const int useful = useful_threads(threads, prototypes.count * prototypes.v.columns);
  run_tasks(n_tasks, useful, [&](int64_t task) {
    const int64_t end = std::min(prototypes.count, (task + 1) * kRowsOfTask);
    for (int64_t k = task * kRowsOfTask; k < end; ++k) row(k);
  });
}

}  // namespace

void normalize_prototypes(const Prototypes& prototypes, const Head& w, DType dtype, int threads) {
  check_matrix(prototypes, prototypes.v, prototypes.dtype, "v");
  check_matrix(prototypes, w, dtype, "w");
  check_pointer(prototypes.g, prototypes.count, "g");
  const auto row =
      tile_kernels().normalize_row[static_cast<int>(prototypes.dtype)][static_cast<int>(dtype)];
  for_rows(prototypes, threads, [&](int64_t k) {
    row(row_of(prototypes.v, prototypes.dtype, k), w.columns, prototypes.g[k], row_of(w, dtype, k));
  });
}

void prototype_gradients(const Prototypes& prototypes, const PrototypeGradients& gradients,
                         int threads) {
  check_matrix(prototypes, prototypes.v, prototypes.dtype, "v");
  check_matrix(prototypes, gradients.dw, gradients.dtype, "dw");
  check_matrix(prototypes, gradients.dv, prototypes.dtype, "dv");
  check_pointer(prototypes.g, prototypes.count, "g");
  check_pointer(gradients.dg, prototypes.count, "dg");
  const auto row = tile_kernels().prototype_gradient_row[static_cast<int>(prototypes.dtype)]
                                                        [static_cast<int>(gradients.dtype)];
  for_rows(prototypes, threads, [&](int64_t k) {
    const float* dscale = gradients.dscale == nullptr ? nullptr : gradients.dscale + k;
    gradients.dg[k] = row(row_of(prototypes.v, prototypes.dtype, k),
                          row_of(gradients.dw, gradients.dtype, k), prototypes.v.columns,
                          prototypes.g[k], dscale, row_of(gradients.dv, prototypes.dtype, k));
  });
}

}  // namespace franca::cpu
