// How ragged heads are cut into tiles, and the checks that every entry point makes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/tile_kernels.hpp"
#include "franca/views.hpp"

namespace franca::cpu {

// Wide enough that the call of a tile kernel does not count, narrow enough for the first cache.
// Sums are taken tile by tile, so the width decides their bits and must not depend on the machine.
constexpr int64_t kTileColumns = 512;

struct Tile {
  int64_t head;
  int64_t begin;    // first column within its head
  int64_t columns;  // at most kTileColumns
  int64_t offset;   // of the first column in vectors over all prototypes
};

// All tiles, head by head and left to right.
struct Tiling {
  explicit Tiling(const RaggedLogits& logits);

  std::vector<Tile> tiles;
  std::vector<int64_t> first_of_head;  // [n_heads + 1], indices into tiles

  const Tile* begin(int64_t head) const { return tiles.data() + first_of_head[head]; }
  const Tile* end(int64_t head) const { return begin(head + 1); }
};

inline const void* tile_row(const RaggedLogits& logits, const Tile& tile, int64_t n) {
  return static_cast<const char*>(logits.row(tile.head, n)) + tile.begin * size_of(logits.dtype);
}

int64_t total_columns(const RaggedLogits& logits);

// Throws std::invalid_argument. `name` is the argument that the message names.
void check_logits(const RaggedLogits& logits, const char* name);
void check_temperature(double temperature, const char* name);
void check_valid_rows(const RaggedLogits& logits, int64_t n_valid);
void check_workspace(std::size_t given, std::size_t needed, const void* workspace);
void check_pointer(const void* pointer, int64_t n_elements, const char* name);

}  // namespace franca::cpu
