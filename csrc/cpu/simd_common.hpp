// What the vector types of all instruction sets share. Included by their source files only; see
// tile_kernels_impl.hpp for why everything is in an anonymous namespace.
//
// A vector type offers: kWidth; load(const T*) of float, BFloat16 and Float16; store(T*, v);
// stream(float*, v), past the caches and to whole vectors, and end_streams() after it; set(float);
// fma(a, b, c) = a b + c, rounded once; multiply_add, the same however rounded; add; sub; mul; div;
// sqrt; max; where_negative(x, a, b) = a where x < 0 and b where x > 0, one of them elsewhere; sum;
// add_sums(a, b, c, d, s), which adds the four sums to s[0 ... 3]; maximum;
// split(x, &e) = x / 2^e in [1, 2) of a positive normal float; and exp, which gives 0 below the
// normal floats, NaN for NaN, and from kExpLargest on something above 2^127 or NaN.
#include <cstdint>

namespace franca::cpu {
namespace {

// bfloat16 and float16 as stored.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// exp(x) = 2^n e^r with n = round(x log2 e) and |r| <= log(2)/2. The minimax relative error of the
// polynomial is 4e-9, so the result is within 1 ulp near 0 and 3 ulp at the ends of the range.
constexpr float kLog2E = 0x1.715476p+0f;
// As a float, log(2) is off by 2e-9. That times n is far less than what rounding x has cost.
constexpr float kLn2 = 0x1.62e43p-1f;
constexpr float kExpC2 = 0x1.fffffcp-2f, kExpC3 = 0x1.555492p-3f, kExpC4 = 0x1.5558f2p-5f,
                kExpC5 = 0x1.1239d6p-7f, kExpC6 = 0x1.6a2448p-10f;
constexpr float kExpSmallest = -87.33654f;  // below it exp(x) is no normal float: 0
constexpr float kExpLargest = 88.37f;       // above it 2^n is no float
// Added, it leaves the nearest integer in the lowest bits, and that plus the bias of the exponent.
constexpr float kRound = 0x1.8p23f + 127.0f;

// x log2 e + kRound: n is this minus kRound, and its bits moved left by 23 are those of 2^n.
template <class V>
inline V exp_power(V x) {
  return V::multiply_add(x, V::set(kLog2E), V::set(kRound));
}

// e^r = 1 + r + r^2 (c2 + c3 r + ...).
template <class V>
inline V exp_reduced(V x, V n) {
  const V r = V::fma(n, V::set(-kLn2), x);
  V p = V::multiply_add(V::set(kExpC6), r, V::set(kExpC5));
  p = V::multiply_add(p, r, V::set(kExpC4));
  p = V::multiply_add(p, r, V::set(kExpC3));
  p = V::multiply_add(p, r, V::set(kExpC2));
  p = V::multiply_add(p, r, V::set(1.0f));
  return V::multiply_add(p, r, V::set(1.0f));
}

// Logarithm of positive normal floats: e log(2) + log(m) with m in [1, 2), whose square root of 2
// is taken out, and log(m) = 2 artanh(s) with s = (m - 1) / (m + 1), |s| <= 0.172. The series is
// off by less than 3e-9, which is what sums in float are off by anyway.
template <class V>
inline V log(V x) {
  V exponent;
  const V m = V::mul(V::split(x, &exponent), V::set(0x1.6a09e6p-1f));  // 1/sqrt(2)
  const V s = V::div(V::sub(m, V::set(1.0f)), V::add(m, V::set(1.0f)));
  const V square = V::mul(s, s);
  V p = V::multiply_add(V::set(2.0f / 9), square, V::set(2.0f / 7));
  p = V::multiply_add(p, square, V::set(2.0f / 5));
  p = V::multiply_add(p, square, V::set(2.0f / 3));
  p = V::multiply_add(p, square, V::set(2.0f));
  return V::multiply_add(p, s, V::mul(V::add(exponent, V::set(0.5f)), V::set(kLn2)));
}

// The ends of rows go through a buffer of one vector.
template <class V, class T>
inline V load_partial(const T* source, int64_t count) {
  T buffer[V::kWidth] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = source[i];
  return V::load(buffer);
}

template <class V, class T>
inline void store_partial(T* target, int64_t count, V value) {
  T buffer[V::kWidth];
  V::store(buffer, value);
  for (int64_t i = 0; i < count; ++i) target[i] = buffer[i];
}

// The first `count` elements of a vector, `fill` behind them.
template <class V>
inline V first(V value, int64_t count, float fill) {
  float buffer[V::kWidth];
  V::store(buffer, value);
  for (int64_t i = count; i < V::kWidth; ++i) buffer[i] = fill;
  return V::load(buffer);
}

}  // namespace
}  // namespace franca::cpu
