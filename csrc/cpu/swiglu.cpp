#include "franca/swiglu.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/parallel.hpp"
#include "cpu/tile_kernels.hpp"
#include "cpu/tiles.hpp"

namespace franca::cpu {
namespace {

// Elements of h that a task has at least.
constexpr int64_t kTaskElements = 1 << 14;

void check(const Head& h, int64_t n_rows, DType dtype) {
  const int code = static_cast<int>(dtype);
  if (code < 0 || code >= kDTypes) throw std::invalid_argument("h: unknown dtype code");
  if (n_rows < 0) throw std::invalid_argument("h: negative number of rows");
  if (h.columns < 0 || h.columns % 2 != 0) {
    throw std::invalid_argument("h: an even number of columns is needed");
  }
}

void check_matrix(const Head& matrix, int64_t columns, int64_t n_rows, const char* name) {
  if (matrix.columns != columns || matrix.row_stride < 0) {
    throw std::invalid_argument(std::string(name) + ": columns or row stride do not fit h");
  }
  check_pointer(matrix.data, n_rows * columns, name);
}

char* row_of(const Head& matrix, DType dtype, int64_t n) {
  return static_cast<char*>(matrix.data) + n * matrix.row_stride * size_of(dtype);
}

// Calls row(n) for every row.
template <class Row>
void for_rows(int64_t n_rows, int64_t columns, int threads, const Row& row) {
  const int64_t rows_of_task = kTaskElements / std::max<int64_t>(columns, 1) + 1;
  const int64_t n_tasks = (n_rows + rows_of_task - 1) / rows_of_task;
  run_tasks(n_tasks, useful_threads(threads, n_rows * columns), [&](int64_t task) {
    const int64_t end = std::min(n_rows, (task + 1) * rows_of_task);
    for (int64_t n = task * rows_of_task; n < end; ++n) row(n);
  });
}

}  // namespace

void swiglu(const Head& h, const Head& out, int64_t n_rows, DType dtype, int threads) {
  check(h, n_rows, dtype);
  check_matrix(h, h.columns, n_rows, "h");
  check_matrix(out, h.columns / 2, n_rows, "out");
  const auto row = tile_kernels().swiglu_row[static_cast<int>(dtype)];
  for_rows(n_rows, h.columns, threads,
           [&](int64_t n) { row(row_of(h, dtype, n), out.columns, row_of(out, dtype, n)); });
}

void swiglu_gradient(const Head& h, const Head& dout, const Head& dh, int64_t n_rows, DType dtype,
                     int threads) {
  check(h, n_rows, dtype);
  check_matrix(h, h.columns, n_rows, "h");
  check_matrix(dout, h.columns / 2, n_rows, "dout");
  check_matrix(dh, h.columns, n_rows, "dh");
  const auto row = tile_kernels().swiglu_gradient_row[static_cast<int>(dtype)];
  for_rows(n_rows, h.columns, threads, [&](int64_t n) {
    row(row_of(h, dtype, n), row_of(dout, dtype, n), dout.columns, row_of(dh, dtype, n));
  });
}

}  // namespace franca::cpu
