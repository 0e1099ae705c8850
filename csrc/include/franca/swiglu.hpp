// SwiGLU's product (arXiv 2002.05202): of rows h [2w], a gate g and a value v of w elements each,
//
//   out = silu(g) v         silu(g) = g s(g)         s(g) = 1 / (1 + exp(-g))
//   dg = dout v s (1 + g (1 - s))                    dv = dout silu(g)
//
// in one pass forward and one backward. Both compute in float32 and round once.
//
// Results have the same bits for any number of threads. The functions throw std::invalid_argument
// for sizes that cannot be meant; they cannot check the memory behind a view.
#pragma once

#include <cstdint>

#include "franca/views.hpp"

namespace franca::cpu {

// h [n_rows, 2w], out [n_rows, w].
void swiglu(const Head& h, const Head& out, int64_t n_rows, DType dtype, int threads);

// dh [n_rows, 2w]: dg and dv as g and v in h.
void swiglu_gradient(const Head& h, const Head& dout, const Head& dh, int64_t n_rows, DType dtype,
                     int threads);

}  // namespace franca::cpu
