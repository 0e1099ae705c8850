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
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
  static Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  static Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
  static float maximum(Vec a) { return _mm512_reduce_max_ps(a.v); }

  static Vec exp(Vec x) {
    const Vec n = sub(exp_power(x), set(kRound));
    // "Not less" keeps NaN.
    const __mmask16 normal = _mm512_cmp_ps_mask(x.v, set(kExpSmallest).v, _CMP_NLT_UQ);
    return {_mm512_maskz_scalef_ps(normal, exp_reduced(x, n).v, n.v)};
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
