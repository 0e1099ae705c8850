// The inner loops, one set for each instruction set. A tile is a piece of one row of logits.
//
// Everything above them (threads, order of sums, shifts against overflow) is written once, in plain
// C++; only these functions differ between machines.
#pragma once

#include <cstdint>

#include "franca/adamw_update.hpp"
#include "franca/views.hpp"

namespace franca::cpu {

// 1/T as the sum of two floats, so that z/T is exact to the last bit of a float.
struct Scale {
  explicit Scale(double temperature)
      : high(static_cast<float>(1.0 / temperature)),
        low(static_cast<float>(1.0 / temperature - static_cast<double>(high))) {}
  float high;
  float low;
};

struct StudentSums {
  float total;      // sum_k exp(s[k]/t - shift)
  float agreement;  // sum_k q[k] s[k]
};

// Rows [tokens, head_dim] of one head with adjacent elements; the stride counts elements.
struct HeadRows {
  void* data;
  int64_t stride;

  HeadRows from(int64_t row, int64_t element_bytes) const {
    return {static_cast<char*>(data) + row * stride * element_bytes, stride};
  }
};

// One head of one sequence; what only the other direction needs may be missing.
struct AttentionHead {
  int64_t length;
  int64_t dim;
  float scale;
  HeadRows q, k, v;
  HeadRows out;       // of the forward
  HeadRows grad_out;  // of the backward, and the gradients
  HeadRows dq, dk, dv;
  float* lse;
  int64_t lse_stride;
};

// Queries that are taken at a time, and what rows in scratch are multiples of: the widest vector.
constexpr int64_t kAttentionRows = 32;
constexpr int64_t kAttentionPadding = 16;
constexpr int64_t padded(int64_t columns) {
  return (columns + kAttentionPadding - 1) / kAttentionPadding * kAttentionPadding;
}
// Floats of scratch for a head.
constexpr int64_t attention_scratch(int64_t length, int64_t dim) {
  return 4 * length * padded(dim) + 2 * kAttentionRows * padded(dim) + dim * kAttentionRows +
         2 * length * kAttentionRows;
}

constexpr int kDTypes = 3;
// Floats of scratch for each row in `balance`: as many columns as it takes at a time.
constexpr int64_t kBalanceScratch = 128;

// Arrays are indexed by DType. x: logits; n: their number; scale: the inverse temperature.
// exp(...) of arguments below the range of normal floats is 0.
struct TileKernels {
  // Returns sum_k exp(x[k]/T + potential[k] - shift).
  float (*exp_sum[kDTypes])(const void* x, int64_t n, Scale scale, const float* potential,
                            float shift);
  // out[k] += factor exp(x[k]/T + potential[k] - shift)
  void (*add_exp[kDTypes])(const void* x, int64_t n, Scale scale, const float* potential,
                           float shift, float factor, float* out);
  // out[k] = exp(x[k]/T + potential[k] - shift). Returns their sum.
  float (*write_exp[kDTypes])(const void* x, int64_t n, Scale scale, const float* potential,
                              float shift, float* out);
  // out[k] = factor x[k]; out may be x, or, with `stream`, memory that is not to be kept in cache.
  void (*multiply)(const float* x, int64_t n, float factor, float* out, bool stream);
  // Returns max_k x[k]/T + potential[k]; potential may be null.
  float (*maximum[kDTypes])(const void* x, int64_t n, Scale scale, const float* potential);
  // maximum[k] = max(maximum[k], x[k]/T)
  void (*column_maximum[kDTypes])(const void* x, int64_t n, Scale scale, float* maximum);
  // The same, and sum[k] += exp(x[k]/T - shift[k]); `next` is fetched into the cache.
  void (*column_exp_sum[kDTypes])(const void* x, const void* next, int64_t n, Scale scale,
                                  const float* shift, float* maximum, float* sum);
  // Sums of a piece of a student row; q are its targets.
  StudentSums (*student_sums[kDTypes])(const void* x, int64_t n, Scale scale, float shift,
                                       const float* q);
  // gradient[k] = softmax_factor exp(x[k]/t - lse) - target_factor q[k], in the dtype of x, which
  // may be the same memory.
  void (*student_gradient[kDTypes])(const void* x, int64_t n, Scale scale, float lse,
                                    float softmax_factor, float target_factor, const float* q,
                                    void* gradient);
  // One iteration of Sinkhorn-Knopp on some columns of all rows. row: b [n_rows] of the iteration
  // before, or null in the first one, where a is not read and log-sum-exps are used. prototype:
  // a[k] -= log sum_n exp(x[n,k]/T + a[k] + b[n]). row_sums[n]: with the new a, the sum over these
  // columns of exp(x[n,k]/T + a[k] + b[n]). scratch: [n_rows, kBalanceScratch].
  void (*balance[kDTypes])(const void* x, int64_t row_stride, int64_t n_rows, int64_t columns,
                           Scale scale, const float* row, float* prototype, float* scratch,
                           float* row_sums);
  // total[k] = total[k] exp(before[k] - maximum[k]) + sum[k] exp(shift[k] - maximum[k])
  void (*merge_totals)(const float* before, const float* shift, const float* maximum,
                       const float* sum, int64_t n, float* total);
  // One weight-normalised prototype, w = g v/|v|, and its gradient as franca/weight_norm.hpp has
  // it; that of g is returned. Indexed by the dtypes of v, which is that of dv, and of w or dw.
  void (*normalize_row[kDTypes][kDTypes])(const void* v, int64_t n, float g, void* w);
  float (*prototype_gradient_row[kDTypes][kDTypes])(const void* v, const void* dw, int64_t n,
                                                    float g, const float* dscale, void* dv);
  // Attention of one head over one sequence, see franca/varlen_attention.hpp; scratch:
  // attention_scratch floats.
  void (*attention_forward[kDTypes])(const AttentionHead& head, float* scratch);
  void (*attention_backward[kDTypes])(const AttentionHead& head, float* scratch);
  // A row of SwiGLU and of its gradient, as franca/swiglu.hpp has them.
  void (*swiglu_row[kDTypes])(const void* h, int64_t width, void* out);
  void (*swiglu_gradient_row[kDTypes])(const void* h, const void* dout, int64_t width, void* dh);
  // AdamW and the teacher's average on elements [begin, begin + n) of a tensor.
  void (*adamw)(const UpdatedTensor& tensor, int64_t begin, int64_t n, const AdamWFactors& factors);
};

namespace portable {
const TileKernels& tile_kernels();
}
#if defined(FRANCA_X86_KERNELS)
namespace avx2 {
const TileKernels& tile_kernels();
}
namespace avx512 {
const TileKernels& tile_kernels();
}
#endif

// The set for the instruction set in use.
const TileKernels& tile_kernels();

}  // namespace franca::cpu
