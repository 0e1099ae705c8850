// Weight-normalised prototypes w[k] = g[k] v[k] / |v[k]| (arXiv 1602.07868) and their gradient, one
// pass over the prototypes each.
//
// Results have the same bits for any number of threads. The functions throw std::invalid_argument
// for sizes that cannot be meant; they cannot check the memory behind a view.
#pragma once

#include <cstdint>

#include "franca/views.hpp"

namespace franca {

struct Prototypes {
  Head v;          // [K, C]
  DType dtype;     // of v
  const float* g;  // [K]
  int64_t count;   // K
};

// The gradients of v and g from that of w,
//
//   dv[k] = g[k]/|v[k]| (dw[k] - <dw[k], v[k]>/|v[k]|^2 v[k])     dg[k] = <dw[k], v[k]>/|v[k]|
//
// or, where dscale is given, from those of the two things that streamed scores are made of: dw of
// v itself, and dscale of the scales g/|v|,
//
//   dv[k] = dw[k] - dscale[k] g[k]/|v[k]|^3 v[k]                  dg[k] = dscale[k]/|v[k]|
struct PrototypeGradients {
  Head dw;              // [K, C]
  DType dtype;          // of dw
  const float* dscale;  // [K], or null
  Head dv;              // [K, C] of the dtype of v; may be dw
  float* dg;            // [K]
};

namespace cpu {

// w [K, C], of any dtype, rounded once.
void normalize_prototypes(const Prototypes& prototypes, const Head& w, DType dtype, int threads);

void prototype_gradients(const Prototypes& prototypes, const PrototypeGradients& gradients,
                         int threads);

}  // namespace cpu
}  // namespace franca
