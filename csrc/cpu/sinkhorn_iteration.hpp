// One iteration of Sinkhorn-Knopp on some columns of all rows, with one exponential for each logit.
// Included by tile_kernels_impl.hpp; see there for why everything is in an anonymous namespace.
//
// With b of the iteration before, the mass c[k] = sum_n exp(z/T + a[k] + b[n]) gives the new
// a'[k] = a[k] - log c[k], and the terms of that sum, kept in cache, give the next row sums without
// another exponential: exp(z/T + a'[k] + b[n]) = exp(z/T + a[k] + b[n]) exp(a'[k] - a[k]).
#pragma once

#include "cpu/tile_kernels.hpp"

namespace franca::cpu {
namespace {

// A sum of hundreds of terms in one float loses digits, so masses are summed in two stages.
constexpr int64_t kMassRows = 32;
// The pieces of a row in one strip are few, and those of the next row far away: nothing but this
// asks for them early. More rows would push each other out of the sets that they share.
constexpr int64_t kRowsAhead = 8;

// Rows that tell where the exponents of the first iteration lie.
constexpr int64_t kRowsToStart = 8;

// Vectors in a strip: as many as there are registers for. Rows are then read in longer pieces.
template <class V>
constexpr int kStripVectors = V::kWidth >= 16 ? 8 : 4;

// The arguments of TileKernels::balance, for one strip of kVectors vectors of columns.
template <class T>
struct Strip {
  const T* logits;
  int64_t row_stride;
  int64_t n_rows;
  int64_t count;  // columns, where they are fewer than a vector
  Scale scale;
  const float* row;
  float* prototype;
  float* terms;     // [n_rows, kVectors, kWidth]
  float* row_sums;  // [n_rows]
};

template <class V, class T, int kVectors, bool kPartial>
struct StripKernel {
  static constexpr int64_t kWidth = V::kWidth;
  const Strip<T>& strip;

  template <class S>
  V load(const S* p) const {
    return kPartial ? load_partial<V>(p, strip.count) : V::load(p);
  }
  V filled(V v) const { return kPartial ? first<V>(v, strip.count, 0.0f) : v; }
  float* term(int64_t n, int i) const { return strip.terms + (n * kVectors + i) * kWidth; }
  V logit(int64_t n, int i) const {
    const T* p = strip.logits + n * strip.row_stride + i * kWidth;
    if (i * kWidth * sizeof(T) % 64 == 0) __builtin_prefetch(p + kRowsAhead * strip.row_stride);
    return load(p);
  }

  // Without potentials yet: the largest exponent of each column in the first rows becomes 0.
  void start(int64_t n_rows, V (&potential)[kVectors]) const {
    V largest[kVectors];
    for (int i = 0; i < kVectors; ++i) largest[i] = V::set(-__builtin_inff());
    for (int64_t n = 0; n < n_rows; ++n) {
      for (int i = 0; i < kVectors; ++i) largest[i] = V::max(largest[i], logit(n, i));
    }
    const V high = V::set(strip.scale.high), low = V::set(strip.scale.low);
    for (int i = 0; i < kVectors; ++i) {
      potential[i] = V::sub(V::set(0), scaled(largest[i], high, low));
    }
  }

  // The first iteration: a few rows tell the exponents of most logits well enough, and the others
  // pay for a look at all of them.
  void first_sums(V (&potential)[kVectors], V (&mass)[kVectors]) const {
    start(strip.n_rows < kRowsToStart ? strip.n_rows : kRowsToStart, potential);
    sum_rows<true>(potential, mass);
    V extent = V::set(0);
    for (int i = 0; i < kVectors; ++i) {
      extent = V::add(extent, V::add(mass[i], V::div(V::set(1), mass[i])));
    }
    if (!(V::sum(extent) < 0x1p60f)) {  // also if it is NaN
      start(strip.n_rows, potential);
      sum_rows<true>(potential, mass);
    }
  }

  // Terms exp(z/T + a + b) and their sums over the rows.
  template <bool kFirst>
  void sum_rows(const V (&potential)[kVectors], V (&mass)[kVectors]) const {
    const V high = V::set(strip.scale.high), low = V::set(strip.scale.low);
    for (int i = 0; i < kVectors; ++i) mass[i] = V::set(0);
    for (int64_t begin = 0; begin < strip.n_rows; begin += kMassRows) {
      const int64_t end = begin + kMassRows < strip.n_rows ? begin + kMassRows : strip.n_rows;
      V sum[kVectors];
      for (int i = 0; i < kVectors; ++i) sum[i] = V::set(0);
      for (int64_t n = begin; n < end; ++n) {
        for (int i = 0; i < kVectors; ++i) {
          const V y = scaled(logit(n, i), high, low, potential[i]);
          const V e = V::exp(kFirst ? y : V::add(y, V::set(strip.row[n])));
          V::store(term(n, i), e);
          sum[i] = V::add(sum[i], e);
        }
      }
      for (int i = 0; i < kVectors; ++i) mass[i] = V::add(mass[i], sum[i]);
    }
  }

  void run() const {
    V potential[kVectors], factor[kVectors];
    if (strip.row == nullptr) {
      first_sums(potential, factor);
    } else {
      for (int i = 0; i < kVectors; ++i) potential[i] = load(strip.prototype + i * kWidth);
      sum_rows<false>(potential, factor);
    }
    for (int i = 0; i < kVectors; ++i) {
      const V next = V::sub(potential[i], log(factor[i]));
      // Of the potential as rounded, so that it and the row sums belong together.
      factor[i] = filled(V::exp(V::sub(next, potential[i])));
      if (kPartial) {
        store_partial<V>(strip.prototype, strip.count, next);
      } else {
        V::store(strip.prototype + i * kWidth, next);
      }
    }
    const auto row_sum = [&](int64_t n) {
      V sum = V::mul(V::load(term(n, 0)), factor[0]);
      for (int i = 1; i < kVectors; ++i) {
        sum = V::multiply_add(V::load(term(n, i)), factor[i], sum);
      }
      return sum;
    };
    int64_t n = 0;
    for (; n + 4 <= strip.n_rows; n += 4) {
      V::add_sums(row_sum(n), row_sum(n + 1), row_sum(n + 2), row_sum(n + 3), strip.row_sums + n);
    }
    for (; n < strip.n_rows; ++n) strip.row_sums[n] += V::sum(row_sum(n));
  }
};

template <class V, class T>
void balance(const void* logits, int64_t row_stride, int64_t n_rows, int64_t columns, Scale scale,
             const float* row, float* prototype, float* scratch, float* row_sums) {
  constexpr int kVectors = kStripVectors<V>;
  static_assert(kVectors * V::kWidth <= kBalanceScratch, "scratch is too small");
  const T* x = static_cast<const T*>(logits);
  for (int64_t n = 0; n < n_rows; ++n) row_sums[n] = 0.0f;
  const auto strip_at = [&](int64_t k, int64_t count) {
    return Strip<T>{x + k, row_stride, n_rows, count, scale, row, prototype + k, scratch, row_sums};
  };
  int64_t k = 0;
  for (; k + kVectors * V::kWidth <= columns; k += kVectors * V::kWidth) {
    StripKernel<V, T, kVectors, false>{strip_at(k, 0)}.run();
  }
  for (; k + V::kWidth <= columns; k += V::kWidth) {
    StripKernel<V, T, 1, false>{strip_at(k, 0)}.run();
  }
  if (k < columns) StripKernel<V, T, 1, true>{strip_at(k, columns - k)}.run();
}

}  // namespace
}  // namespace franca::cpu
