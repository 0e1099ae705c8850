// The host's side of kernels on tiles of scores: their factors and types, and how much of these
// fits into shared memory.
#pragma once

#include "cuda/primitives/launch.cuh"
#include "cuda/score_kernels.cuh"
#include "franca/cuda/streamed_clustering.hpp"

namespace franca::cuda {

// What the blocks of a launch multiply, at most.
struct TileWork {
  int64_t products;    // for each tile
  int steps;           // of every product but the last
  int last_steps;      // of the last one
  std::size_t memory;  // that a block needs for itself
  int blocks;          // that had better share a multiprocessor
};

struct PlannedTiles {
  TilePlan plan;
  std::size_t bytes;
};

constexpr std::size_t kStepBytes = kStepPacks * kPackBytes;

// The shared memory of one of so many blocks.
inline std::size_t shared_bytes_of_block(int blocks) {
  constexpr std::size_t kReserved = 1024;
  return std::min(most_shared_bytes(), shared_bytes_of_multiprocessor() / blocks - kReserved);
}

// With as many held factors kept as leave `fewest` stages, up to `most`, preferably for several
// blocks on a multiprocessor.
inline bool try_plan(const TileWork& work, int fewest, int most, PlannedTiles& result) {
  constexpr int64_t kMostKept = 16;
  for (int64_t kept = smaller(work.products, kMostKept); kept >= 0; --kept) {
    const bool all = kept == work.products;
    const int64_t steps = kept * work.steps + (all ? work.last_steps - work.steps : 0);
    const int stage_steps = all ? 1 : 2;
    for (int blocks = work.blocks; blocks >= 1; --blocks) {
      const auto room = static_cast<int64_t>(shared_bytes_of_block(blocks)) -
                        static_cast<int64_t>(work.memory) -
                        steps * static_cast<int64_t>(kStepBytes);
      const int64_t fit = room / (stage_steps * static_cast<int64_t>(kStepBytes));
      if (room < 0 || fit < fewest) continue;
      const auto stages = static_cast<int>(smaller(fit, most));
      const int64_t total = steps + static_cast<int64_t>(stages) * stage_steps;
      result = {{static_cast<int>(kept), static_cast<int>(steps), stages, stage_steps},
                static_cast<std::size_t>(total) * kStepBytes + work.memory};
      return true;
    }
  }
  return false;
}

template <class Form>
PlannedTiles plan_tiles(const TileWork& work) {
  constexpr int kUsed = 1 + Form::kInFlight, kEnough = 3;
  PlannedTiles result{};
  if (try_plan(work, kEnough, kUsed + kMostAhead, result)) return result;
  if (try_plan(work, kUsed + 1, kUsed + kMostAhead, result)) return result;
  throw std::runtime_error("the device has too little shared memory for tiles of scores");
}

// Calls body(pointer to the element type, form in which tiles are multiplied).
template <class Body>
void with_kernel_types(const ScoreSide& side, Body body) {
  const auto with_form = [&](auto* type) {
    if (side.warpgroups && offers_warpgroups()) return body(type, ByWarpgroups{});
    body(type, ByWarps{});
  };
  if (side.dtype == DType::bfloat16) return with_form(static_cast<BFloat16*>(nullptr));
  if (side.dtype == DType::float16) return with_form(static_cast<Float16*>(nullptr));
  throw std::invalid_argument("matrix instructions read bfloat16 and float16");
}

inline ScoreFactors factors_of(const ScoreSide& side) {
  check_heads(side.n_heads);
  ScoreFactors factors{};
  for (int64_t h = 0; h < side.n_heads; ++h) {
    if (side.features[h].columns != side.prototypes[h].columns) {
      throw std::invalid_argument("features and prototypes differ in their columns");
    }
    factors.features[h] = make_matrix(side.features[h], side.dtype);
    factors.prototypes[h] = make_matrix(side.prototypes[h], side.dtype);
    factors.scale[h] = side.scales[h];
  }
  return factors;
}

// The scores as if they were stored: only their sizes count.
inline Heads scores_of(const ScoreSide& side, const Head* out = nullptr) {
  check_heads(side.n_heads);
  Head heads[kMaxHeads] = {};
  for (int64_t h = 0; h < side.n_heads; ++h) {
    heads[h] = out != nullptr ? out[h] : Head{nullptr, side.n_prototypes[h], side.n_prototypes[h]};
    if (heads[h].columns != side.n_prototypes[h]) throw std::invalid_argument("out: columns");
  }
  return make_heads({heads, side.n_heads, side.n_rows, side.dtype});
}

inline int64_t row_tiles(int64_t n_rows) {
  return divide_up(n_rows, kTileRows);
}

// Steps of the deepest head.
inline int most_steps(const ScoreFactors& factors, const Heads& scores) {
  int steps = 1;
  for (int h = 0; h < scores.n_heads; ++h) {
    steps = std::max(steps, steps_of(factors.features[h]));
  }
  return steps;
}

}  // namespace franca::cuda
