// What the elements of a tensor have in common, computed once for each tensor.
#pragma once

#include <cmath>

#include "franca/adamw_update.hpp"

#if defined(__CUDACC__)
#define FRANCA_ANYWHERE __host__ __device__
#else
#define FRANCA_ANYWHERE
#endif

namespace franca {

// `step` is the number of this step.
FRANCA_ANYWHERE inline AdamWFactors adamw_factors(const AdamWConstants& c, float clip, double lr,
                                                  double weight_decay, double step) {
  AdamWFactors f;
  f.clip = clip;
  f.kept_parameter = static_cast<float>(1.0 - lr * weight_decay);
  f.gradient_share = static_cast<float>(1.0 - c.beta1);
  f.beta2 = static_cast<float>(c.beta2);
  f.square_share = static_cast<float>(1.0 - c.beta2);
  f.step_size = static_cast<float>(-lr / (1.0 - pow(c.beta1, step)));
  f.correction = static_cast<float>(sqrt(1.0 - pow(c.beta2, step)));
  f.eps = static_cast<float>(c.eps);
  f.kept_teacher = static_cast<float>(c.momentum);
  // Not 1 - momentum rounded apart: the two must sum to 1, or the teacher slowly drifts.
  f.taken_student = 1.0f - f.kept_teacher;
  return f;
}

}  // namespace franca
