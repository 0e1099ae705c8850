// bfloat16 and float16 as stored, their conversions, and the fast exponential.
#pragma once

#include <cmath>

#include "cuda/primitives/platform.cuh"

namespace franca::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr float kInfinity = HUGE_VALF;

#if defined(FRANCA_EMULATION)

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float compute_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value;
  if (exponent == 31) {
    value = mantissa != 0 ? NAN : HUGE_VALF;
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

inline float half_to_float(uint16_t bits) {
  static const auto table = [] {
    std::vector<float> values(1 << 16);
    for (int i = 0; i < 1 << 16; ++i) values[i] = compute_half(static_cast<uint16_t>(i));
    return values;
  }();
  return table[bits];
}

inline uint16_t half_from_float(float value) {
  const auto sign = static_cast<uint16_t>(bits_of_float(value) >> 16 & 0x8000);
  const float size = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  // Values are whole multiples of this spacing; nearbyint rounds half to even.
  const int exponent = std::max(std::ilogb(size == 0.0f ? 1e-30f : size), -14);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  // Subnormal numbers have exponent field 0; normal ones carry 1024 steps of the hidden bit.
  return sign | static_cast<uint16_t>((exponent + 14) * 1024 + steps);
}

inline uint16_t bfloat_from_float(float value) {
  const uint32_t bits = bits_of_float(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint32_t pair_from_floats(float low, float high, const BFloat16*) {
  return bfloat_from_float(low) | static_cast<uint32_t>(bfloat_from_float(high)) << 16;
}

inline uint32_t pair_from_floats(float low, float high, const Float16*) {
  return half_from_float(low) | static_cast<uint32_t>(half_from_float(high)) << 16;
}

inline float exp2_fast(float x) {
  return std::exp2(x);
}

inline float log2_fast(float x) {
  return std::log2(x);
}

inline float reciprocal_fast(float x) {
  return 1.0f / x;
}

#else

__device__ __forceinline__ float float_of_bits(uint32_t bits) {
  return __uint_as_float(bits);
}

__device__ __forceinline__ uint32_t bits_of_float(float value) {
  return __float_as_uint(value);
}

__device__ __forceinline__ float half_to_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ uint16_t half_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ uint16_t bfloat_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// Two numbers in one instruction.
__device__ __forceinline__ uint32_t pair_from_floats(float low, float high, const BFloat16*) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

__device__ __forceinline__ uint32_t pair_from_floats(float low, float high, const Float16*) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

// Wrong by at most 2^-22 or, where the logarithm is beyond -1 and 1, 2^-22 of it.
__device__ __forceinline__ float log2_fast(float x) {
  float value;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

// Wrong by at most the last bit.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float value;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

#endif

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(BFloat16 value) {
  return float_of_bits(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float to_float(Float16 value) {
  return half_to_float(value.bits);
}

__device__ __forceinline__ void assign(float& to, float value) {
  to = value;
}
__device__ __forceinline__ void assign(BFloat16& to, float value) {
  to.bits = bfloat_from_float(value);
}
__device__ __forceinline__ void assign(Float16& to, float value) {
  to.bits = half_from_float(value);
}

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

// exp(x). The relative error grows like |x| times that of a float, which is small beside what
// rounding x itself costs.
__device__ __forceinline__ float fast_exp(float x) {
  return exp2_fast(x * kLog2E);
}

}  // namespace franca::cuda
