// Packed attention as Python passes it, for CPU and CUDA.
#pragma once

#include <tuple>

#include "franca/varlen_attention.hpp"
#include "python/bindings.hpp"

namespace franca::python {

// Address, token stride and head stride.
using Packed = std::tuple<Address, int64_t, int64_t>;

inline PackedHeads heads_of(const Packed& packed) {
  return {pointer<void>(std::get<0>(packed)), std::get<1>(packed), std::get<2>(packed)};
}

// What forward and backward have in common, kept alive for the time of a call.
struct AttentionArguments {
  // `numbers`: first token, number of sequences and length of each run.
  AttentionArguments(const Packed& q, const Packed& k, const Packed& v, const Numbers& numbers,
                     int64_t n_tokens, int64_t n_heads, int64_t head_dim, int dtype, double scale) {
    if (numbers.size() % 3 != 0) throw std::invalid_argument("runs: three numbers each are needed");
    for (std::size_t i = 0; i < numbers.size(); i += 3) {
      runs.push_back({numbers[i], numbers[i + 1], numbers[i + 2]});
    }
    view = {heads_of(q),
            heads_of(k),
            heads_of(v),
            runs.data(),
            static_cast<int64_t>(runs.size()),
            n_tokens,
            n_heads,
            head_dim,
            static_cast<DType>(dtype),
            scale};
  }
  AttentionArguments(const AttentionArguments&) = delete;
  AttentionArguments& operator=(const AttentionArguments&) = delete;

  std::vector<SequenceRun> runs;
  AttentionProblem view{};
};

}  // namespace franca::python
