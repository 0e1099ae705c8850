// AdamW and the teacher's average on some elements of a tensor, and how tensors are given to the
// kernels.
#pragma once

#include "cuda/primitives/memory.cuh"
#include "franca/adamw_update.hpp"

namespace franca::cuda {

constexpr int kAdamWThreads = 256;
constexpr int kPacksPerThread = 4;
constexpr int kElementsPerBlock = kAdamWThreads * kPacksPerThread * kPack<float>;
// Both lists below are parameters of kernels, which have 4 KiB.
constexpr int kTensorsPerLaunch = 64;

struct AdamWInputs {
  AdamWConstants constants;
  const float* clip_factors;
  const bool* finite;
  AdamWFactors* factors;  // of all tensors
};

struct AdamWRates {
  struct {
    float* step;
    double lr, weight_decay;
    int64_t module;
  } tensor[kTensorsPerLaunch];
  int n_tensors;
  int64_t first;  // among all tensors
};

struct AdamWStream {
  float* parameter;
  const float* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  float* teacher;
  int64_t size;
  int64_t first_block;
};

struct AdamWStreams {
  AdamWStream tensor[kTensorsPerLaunch];
  int n_tensors;
  int64_t first;
};

__device__ __forceinline__ void adamw_element(const AdamWFactors& f, float gradient, float& p,
                                              float& m, float& v) {
  const float g = gradient * f.clip;
  m = fmaf(f.gradient_share, g - m, m);
  v = fmaf(f.square_share * g, g, v * f.beta2);
  const float denominator = sqrtf(v) / f.correction + f.eps;
  p = fmaf(p, f.kept_parameter, f.step_size * m / denominator);
}

__device__ __forceinline__ float averaged(const AdamWFactors& f, float teacher, float p) {
  return fmaf(teacher, f.kept_teacher, p * f.taken_student);
}

__device__ __forceinline__ bool has_vectors(const AdamWStream& x) {
  const auto bits = [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); };
  const std::uintptr_t all =
      bits(x.parameter) | bits(x.gradient) | bits(x.exp_avg) | bits(x.exp_avg_sq) | bits(x.teacher);
  return all % kPackBytes == 0;
}

__device__ __forceinline__ void load_four(float (&values)[4], const float* from) {
  unpack(values, load_vector(from), from);
}

__device__ __forceinline__ void store_four(float* to, const float (&values)[4]) {
  store_vector(to, make_pack(values, to));
}

__device__ __forceinline__ void adamw_pack(const AdamWStream& x, const AdamWFactors& f, int64_t i) {
  float p[4], g[4], m[4], v[4], t[4] = {};
  load_four(p, x.parameter + i);
  unpack(g, load_vector_read_only(x.gradient + i), x.gradient);
  load_four(m, x.exp_avg + i);
  load_four(v, x.exp_avg_sq + i);
  if (x.teacher != nullptr) load_four(t, x.teacher + i);
  for (int k = 0; k < 4; ++k) {
    adamw_element(f, g[k], p[k], m[k], v[k]);
    t[k] = averaged(f, t[k], p[k]);
  }
  store_four(x.parameter + i, p);
  store_four(x.exp_avg + i, m);
  store_four(x.exp_avg_sq + i, v);
  if (x.teacher != nullptr) store_four(x.teacher + i, t);
}

__device__ __forceinline__ void adamw_single(const AdamWStream& x, const AdamWFactors& f,
                                             int64_t i) {
  float p = x.parameter[i], m = x.exp_avg[i], v = x.exp_avg_sq[i];
  adamw_element(f, x.gradient[i], p, m, v);
  x.parameter[i] = p;
  x.exp_avg[i] = m;
  x.exp_avg_sq[i] = v;
  if (x.teacher != nullptr) x.teacher[i] = averaged(f, x.teacher[i], p);
}

}  // namespace franca::cuda
