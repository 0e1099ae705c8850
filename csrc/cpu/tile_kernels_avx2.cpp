// Compiled with AVX2, FMA and F16C.
#include <immintrin.h>

#include "cpu/simd_common.hpp"

namespace franca::cpu {
namespace {

struct Vec {
  static constexpr int64_t kWidth = 8;
  __m256 v;

  static Vec set(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static Vec load(const Float16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
  static void store(BFloat16* p, Vec a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    const __m256i result = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1)));
  }
  static void store(Float16* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void stream(float* p, Vec a) { _mm256_stream_ps(p, a.v); }
  static void end_streams() { _mm_sfence(); }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
  static Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  static Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  static Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec where_negative(Vec x, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, x.v)}; }
  static float sum(Vec a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static void add_sums(Vec a, Vec b, Vec c, Vec d, float* sums) {
    const __m256 ab = _mm256_hadd_ps(a.v, b.v), cd = _mm256_hadd_ps(c.v, d.v);
    const __m256 abcd = _mm256_hadd_ps(ab, cd);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
    _mm_storeu_ps(sums, _mm_add_ps(_mm_loadu_ps(sums), four));
  }
  static float maximum(Vec a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
  }

  static Vec exp(Vec given) {
    const Vec x = {_mm256_min_ps(set(kExpLargest).v, given.v)};  // in this order, NaN stays
    const Vec power = exp_power(x);
    const Vec p = exp_reduced(x, sub(power, set(kRound)));
    const Vec scale = {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(power.v), 23))};
    return {_mm256_and_ps(_mm256_cmp_ps(x.v, set(kExpSmallest).v, _CMP_NLT_UQ), mul(p, scale).v)};
  }
  static Vec split(Vec x, Vec* exponent) {
    const __m256i bits = _mm256_castps_si256(x.v);
    const __m256i power = _mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(127));
    exponent->v = _mm256_cvtepi32_ps(power);
    const __m256i mantissa = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff));
    const __m256i one = _mm256_set1_epi32(0x3f800000);
    return {_mm256_castsi256_ps(_mm256_or_si256(mantissa, one))};
  }
};

}  // namespace
}  // namespace franca::cpu

#include "cpu/tile_kernels_impl.hpp"

namespace franca::cpu::avx2 {
const TileKernels& tile_kernels() {
  static const TileKernels table = make_table<Vec>();
  return table;
}
}  // namespace franca::cpu::avx2
