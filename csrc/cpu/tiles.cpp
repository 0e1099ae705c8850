#include "cpu/tiles.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace franca::cpu {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument(message);
}

}  // namespace

Tiling::Tiling(const RaggedLogits& logits) {
  tiles.reserve(static_cast<std::size_t>(total_columns(logits) / kTileColumns + logits.n_heads));
  first_of_head.reserve(static_cast<std::size_t>(logits.n_heads) + 1);
  int64_t offset = 0;
  for (int64_t head = 0; head < logits.n_heads; ++head) {
    first_of_head.push_back(static_cast<int64_t>(tiles.size()));
    const int64_t columns = logits.heads[head].columns;
    for (int64_t begin = 0; begin < columns; begin += kTileColumns) {
      tiles.push_back({head, begin, std::min(kTileColumns, columns - begin), offset + begin});
    }
    offset += columns;
  }
  first_of_head.push_back(static_cast<int64_t>(tiles.size()));
}

int64_t total_columns(const RaggedLogits& logits) {
  int64_t total = 0;
  for (int64_t head = 0; head < logits.n_heads; ++head) total += logits.heads[head].columns;
  return total;
}

void check_logits(const RaggedLogits& logits, const char* name) {
  if (logits.n_heads < 0 || logits.n_rows < 0) fail(std::string(name) + ": negative size");
  for (int64_t head = 0; head < logits.n_heads; ++head) {
    const Head& h = logits.heads[head];
    const std::string which = std::string(name) + "[" + std::to_string(head) + "]";
    if (h.columns < 1) {
      fail(which + ": has " + std::to_string(h.columns) + " columns, at least 1 is needed");
    }
    if (h.row_stride < 0) fail(which + ": the row stride must not be negative");
    check_pointer(h.data, logits.n_rows, which.c_str());
  }
  const int dtype = static_cast<int>(logits.dtype);
  if (dtype < 0 || dtype >= kDTypes) fail(std::string(name) + ": unknown dtype code");
}

void check_temperature(double temperature, const char* name) {
  // The reciprocal must be a float as well.
  if (!(temperature > 1e-30 && temperature < 1e30)) {
    fail(std::string(name) + " is " + std::to_string(temperature) + "; it must be positive");
  }
}

void check_valid_rows(const RaggedLogits& logits, int64_t n_valid) {
  if (n_valid < 0 || n_valid > logits.n_rows) {
    fail("n_valid is " + std::to_string(n_valid) +
         "; it must be between 0 and the number of rows, " + std::to_string(logits.n_rows));
  }
}

void check_workspace(std::size_t given, std::size_t needed, const void* workspace) {
  if (given < needed || (needed > 0 && workspace == nullptr)) {
    fail("workspace has " + std::to_string(given) + " bytes, " + std::to_string(needed) +
         " are needed");
  }
}

void check_pointer(const void* pointer, int64_t n_elements, const char* name) {
  if (n_elements > 0 && pointer == nullptr) fail(std::string(name) + " has no memory");
}

}  // namespace franca::cpu
