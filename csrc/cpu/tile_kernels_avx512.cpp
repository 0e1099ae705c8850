// Compiled with AVX-512 F, BW, DQ and VL.
#include <immintrin.h>

#include "cpu/simd_common.hpp"

namespace franca::cpu {
namespace {

struct Vec {
  static constexpr int64_t kWidth = 16;
  __m512 v;

  static Vec set(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static Vec load(const Float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
  static void store(BFloat16* p, Vec a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
  }
  static void store(Float16* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void stream(float* p, Vec a) { _mm512_stream_ps(p, a.v); }
  static void end_streams() { _mm_sfence(); }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
  static Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  static Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec where_negative(Vec x, Vec a, Vec b) {
    return {_mm512_mask_mov_ps(b.v, _mm512_movepi32_mask(_mm512_castps_si512(x.v)), a.v)};
  }
  static float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
  static float maximum(Vec a) { return _mm512_reduce_max_ps(a.v); }
  static void add_sums(Vec a, Vec b, Vec c, Vec d, float* sums) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
    const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                      _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    _mm_storeu_ps(sums, _mm_add_ps(_mm_loadu_ps(sums), four));
  }

  // The polynomial is short because powers of 2^(1/16) come from a table. Its bits lack j << 19, so
  // that the shifted bits of `power`, an integer n and j below it, make them those of 2^(n + j/16).
  static Vec exp(Vec given) {
    const __m512i table =
        _mm512_setr_epi32(0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                          0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                          0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d);
    constexpr float kRoundTo16th = 0x1.8p19f;
    constexpr float kC2 = 0x1.00029p-1f, kC3 = 0x1.555556p-3f;
    const Vec x = {_mm512_min_ps(set(kExpLargest).v, given.v)};  // in this order, NaN stays
    const Vec power = multiply_add(x, set(kLog2E), set(kRoundTo16th));
    const Vec r = fma(sub(power, set(kRoundTo16th)), set(-kLn2), x);
    const __m512i bits = _mm512_castps_si512(power.v);
    const Vec scale = {_mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_permutexvar_epi32(bits, table), _mm512_slli_epi32(bits, 19)))};
    const Vec p = mul(multiply_add(multiply_add(set(kC3), r, set(kC2)), r, set(1.0f)), r);
    // "Not less" keeps NaN.
    const __mmask16 normal = _mm512_cmp_ps_mask(x.v, set(kExpSmallest).v, _CMP_NLT_UQ);
    return {_mm512_maskz_fmadd_ps(normal, p.v, scale.v, scale.v)};
  }
  static Vec split(Vec x, Vec* exponent) {
    exponent->v = _mm512_getexp_ps(x.v);
    return {_mm512_getmant_ps(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src)};
  }
};

}  // namespace
}  // namespace franca::cpu

#include "cpu/tile_kernels_impl.hpp"

namespace franca::cpu::avx512 {
const TileKernels& tile_kernels() {
  static const TileKernels table = make_table<Vec>();
  return table;
}
}  // namespace franca::cpu::avx512
