// Plain views of memory that somebody else owns: what goes in and out of every kernel.
#pragma once

#include <cstdint>

namespace franca {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::float32 ? 4 : 2;
}

// A matrix [rows, columns] whose columns are adjacent and whose rows may be anywhere. The number
// of rows is that of the family of heads it belongs to. Strides count elements.
struct Head {
  void* data;
  int64_t columns;
  int64_t row_stride;
};

// Logits of several heads that share their rows and are ragged in their columns. Vectors over all
// prototypes (potentials, masses) hold the heads one after the other, without gaps.
struct RaggedLogits {
  const Head* heads;
  int64_t n_heads;
  int64_t n_rows;
  DType dtype;

  const void* row(int64_t head, int64_t n) const {
    const Head& h = heads[head];
    return static_cast<const char*>(h.data) + n * h.row_stride * size_of(dtype);
  }
};

}  // namespace franca
