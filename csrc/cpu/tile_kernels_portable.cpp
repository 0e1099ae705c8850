// For any CPU: loops over small arrays, which compilers turn into the vectors they have.
#include "cpu/simd_common.hpp"
#include "franca/isa.hpp"

namespace franca::cpu {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

float widen(float x) {
  return x;
}
float widen(BFloat16 x) {
  return float_of(static_cast<uint32_t>(x.bits) << 16);
}
float widen(Float16 x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  // The exponent is rebiased by a product, which also normalises subnormal numbers.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;  // infinity or NaN
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  return float_of((magnitude >= (31u << 23) ? special : finite) | sign);
}

void narrow(float x, float* out) {
  *out = x;
}
void narrow(float x, BFloat16* out) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}
void narrow(float x, Float16* out) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u;  // rounds to 65536 or more: infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded result in the lowest bits.
    result = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    const uint32_t odd = (magnitude >> 13) & 1u;
    result = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
  }
  out->bits = static_cast<uint16_t>(result | sign);
}

// A call of fmaf would be emulated in software where the processor has no such instruction.
float fma_once(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return static_cast<float>(static_cast<double>(a) * b + c);  // the product is exact
#endif
}

float fma_fast(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

struct Vec {
  static constexpr int64_t kWidth = 8;
  float v[kWidth];

  template <class F>
  static Vec map(F f) {
    Vec out;
    for (int64_t i = 0; i < kWidth; ++i) out.v[i] = f(i);
    return out;
  }

  static Vec set(float x) {
    return map([&](int64_t) { return x; });
  }
  template <class T>
  static Vec load(const T* p) {
    return map([&](int64_t i) { return widen(p[i]); });
  }
  template <class T>
  static void store(T* p, const Vec& a) {
    for (int64_t i = 0; i < kWidth; ++i) narrow(a.v[i], p + i);
  }
  static void stream(float* p, const Vec& a) { store(p, a); }
  static void end_streams() {}
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return map([&](int64_t i) { return fma_once(a.v[i], b.v[i], c.v[i]); });
  }
  static Vec multiply_add(const Vec& a, const Vec& b, const Vec& c) {
    return map([&](int64_t i) { return fma_fast(a.v[i], b.v[i], c.v[i]); });
  }
  static Vec add(const Vec& a, const Vec& b) {
    return map([&](int64_t i) { return a.v[i] + b.v[i]; });
  }
  static Vec sub(const Vec& a, const Vec& b) {
    return map([&](int64_t i) { return a.v[i] - b.v[i]; });
  }
  static Vec mul(const Vec& a, const Vec& b) {
    return map([&](int64_t i) { return a.v[i] * b.v[i]; });
  }
  static Vec div(const Vec& a, const Vec& b) {
    return map([&](int64_t i) { return a.v[i] / b.v[i]; });
  }
  static Vec sqrt(const Vec& a) {
    return map([&](int64_t i) { return __builtin_sqrtf(a.v[i]); });
  }
  static Vec max(const Vec& a, const Vec& b) {
    return map([&](int64_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec where_negative(const Vec& x, const Vec& a, const Vec& b) {
    return map([&](int64_t i) { return x.v[i] < 0.0f ? a.v[i] : b.v[i]; });
  }
  static float sum(const Vec& a) {
    return ((a.v[0] + a.v[1]) + (a.v[2] + a.v[3])) + ((a.v[4] + a.v[5]) + (a.v[6] + a.v[7]));
  }
  static void add_sums(const Vec& a, const Vec& b, const Vec& c, const Vec& d, float* sums) {
    sums[0] += sum(a);
    sums[1] += sum(b);
    sums[2] += sum(c);
    sums[3] += sum(d);
  }
  static float maximum(const Vec& a) {
    float largest = a.v[0];
    for (int64_t i = 1; i < kWidth; ++i) largest = largest > a.v[i] ? largest : a.v[i];
    return largest;
  }

  static Vec exp(const Vec& given) {
    const Vec x =
        map([&](int64_t i) { return given.v[i] > kExpLargest ? kExpLargest : given.v[i]; });
    const Vec power = exp_power(x);
    const Vec p = exp_reduced(x, sub(power, set(kRound)));
    return map([&](int64_t i) {
      const float y = p.v[i] * float_of(bits_of(power.v[i]) << 23);
      return x.v[i] < kExpSmallest ? 0.0f : y;
    });
  }
  static Vec split(const Vec& x, Vec* exponent) {
    *exponent = map([&](int64_t i) {
      return static_cast<float>(static_cast<int>(bits_of(x.v[i]) >> 23) - 127);
    });
    return map([&](int64_t i) { return float_of((bits_of(x.v[i]) & 0x7fffffu) | 0x3f800000u); });
  }
};

}  // namespace
}  // namespace franca::cpu

#include "cpu/tile_kernels_impl.hpp"

namespace franca::cpu {
namespace portable {
const TileKernels& tile_kernels() {
  static const TileKernels table = make_table<Vec>();
  return table;
}
}  // namespace portable

const TileKernels& tile_kernels() {
  switch (current_isa()) {
#if defined(FRANCA_X86_KERNELS)
    case Isa::avx512:
      return avx512::tile_kernels();
    case Isa::avx2:
      return avx2::tile_kernels();
#endif
    default:
      return portable::tile_kernels();
  }
}

}  // namespace franca::cpu
