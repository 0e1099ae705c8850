// One step of AdamW (arXiv 1711.05101) and of the teacher's moving average, in one pass:
//
//   g <- clip g
//   p <- (1 - lr wd) p
//   m <- m + (1 - beta1) (g - m)
//   v <- beta2 v + (1 - beta2) g^2
//   p <- p - lr / (1 - beta1^n) m / (sqrt(v / (1 - beta2^n)) + eps)
//   t <- momentum t + (1 - momentum) p
//
// with n the number of this step. Gradients are read only.
#pragma once

#include <cstdint>

namespace franca {

// A tensor of float32 and what follows it, all of one size and without gaps.
struct UpdatedTensor {
  float* parameter;       // p
  const float* gradient;  // g
  float* exp_avg;         // m
  float* exp_avg_sq;      // v
  float* step;            // n of the step before
  float* teacher;         // t, or null
  int64_t size;
  double lr;
  double weight_decay;
  int64_t module;  // whose clip factor it takes, where there are any
};

struct AdamWConstants {
  double beta1;
  double beta2;
  double eps;
  double momentum;
};

struct AdamWUpdate {
  const UpdatedTensor* tensors;
  int64_t n_tensors;
  const float* clip_factors;  // [n_modules], or null
  int64_t n_modules;
  const bool* finite;  // false: nothing is changed
  AdamWConstants constants;
};

// What all elements of a tensor have in common.
struct AdamWFactors {
  float clip;
  float kept_parameter;  // 1 - lr wd
  float gradient_share;  // 1 - beta1
  float beta2;
  float square_share;  // 1 - beta2
  float step_size;     // -lr / (1 - beta1^n)
  float correction;    // sqrt(1 - beta2^n)
  float eps;
  float kept_teacher;   // momentum
  float taken_student;  // 1 - momentum
};

namespace cpu {

// Throws std::invalid_argument for sizes, pointers or modules that cannot be.
void adamw_update(const AdamWUpdate& update, int threads);

}  // namespace cpu
}  // namespace franca
