// The tile kernels over a vector type `Vec`, included once by each instruction set's source file.
//
// Those files are compiled for a CPU that this machine may not be. Everything here is therefore in
// an anonymous namespace and uses nothing of the standard library: a shared inline function would
// be merged by the linker, and might be the copy that only a newer CPU can run.

#include "cpu/tile_kernels.hpp"

namespace franca::cpu {
namespace {

constexpr int64_t kUnroll = 4;  // independent chains, to hide the latency of the exponential

// Logits come from memory in one long stream, but hardware prefetchers stop at every page, and long
// computations hide what comes next from the processor's window.
template <class T>
inline void prefetch_ahead(const T* p) {
  constexpr int64_t kBytesAhead = 2048;
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kBytesAhead);
}

// x/T + potential. Large terms cancel before anything is rounded.
template <class V>
inline V scaled(V x, V scale_high, V scale_low, V potential) {
  return V::fma(x, scale_low, V::fma(x, scale_high, potential));
}

// x/T
template <class V>
inline V scaled(V x, V scale_high, V scale_low) {
  return V::fma(x, scale_high, V::mul(x, scale_low));
}

// What is subtracted from these exponents, or added to them, comes after they have been rounded:
// a log-sum-exp taken in one pass then cancels in the next what it was made of, also where one unit
// in the last place of the exponent is large.

// Calls body(i, lane) for whole vectors and tail(i, count) for the rest. `lane` numbers independent
// accumulators.
template <class V, class Body, class Tail>
inline void for_vectors(int64_t n, Body body, Tail tail) {
  int64_t i = 0;
  for (; i + kUnroll * V::kWidth <= n; i += kUnroll * V::kWidth) {
    body(i, 0);
    body(i + V::kWidth, 1);
    body(i + 2 * V::kWidth, 2);
    body(i + 3 * V::kWidth, 3);
  }
  for (; i + V::kWidth <= n; i += V::kWidth) body(i, 0);
  if (i < n) tail(i, n - i);
}

template <class V>
inline V combine(const V (&lanes)[kUnroll]) {
  return V::add(V::add(lanes[0], lanes[1]), V::add(lanes[2], lanes[3]));
}

// Ordinary logits need no shift, and then pay for none.
template <class V, class T, bool kShift>
float exp_sum(const void* logits, int64_t n, Scale scale, const float* potential, float shift) {
  if (kShift && shift == 0.0f) return exp_sum<V, T, false>(logits, n, scale, potential, shift);
  const T* x = static_cast<const T*>(logits);
  const V high = V::set(scale.high), low = V::set(scale.low), offset = V::set(-shift);
  V sums[kUnroll] = {V::set(0), V::set(0), V::set(0), V::set(0)};
  const auto value = [&](V logit, V a) {
    const V y = scaled(logit, high, low, a);
    return V::exp(kShift ? V::add(y, offset) : y);
  };
  for_vectors<V>(
      n,
      [&](int64_t i, int lane) {
        prefetch_ahead(x + i);
        sums[lane] = V::add(sums[lane], value(V::load(x + i), V::load(potential + i)));
      },
      [&](int64_t i, int64_t count) {
        const V v = value(load_partial<V>(x + i, count), load_partial<V>(potential + i, count));
        sums[1] = V::add(sums[1], first<V>(v, count, 0.0f));
      });
  return V::sum(combine(sums));
}

template <class V, class T, bool kShift>
void add_exp(const void* logits, int64_t n, Scale scale, const float* potential, float shift,
             float factor, float* out) {
  if (kShift && shift == 0.0f) {
    return add_exp<V, T, false>(logits, n, scale, potential, shift, factor, out);
  }
  const T* x = static_cast<const T*>(logits);
  const V high = V::set(scale.high), low = V::set(scale.low), offset = V::set(-shift);
  const V f = V::set(factor);
  const auto value = [&](V logit, V a, V before) {
    const V y = scaled(logit, high, low, a);
    return V::multiply_add(V::exp(kShift ? V::add(y, offset) : y), f, before);
  };
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        prefetch_ahead(x + i);
        V::store(out + i, value(V::load(x + i), V::load(potential + i), V::load(out + i)));
      },
      [&](int64_t i, int64_t count) {
        const V v = value(load_partial<V>(x + i, count), load_partial<V>(potential + i, count),
                          load_partial<V>(out + i, count));
        store_partial<V>(out + i, count, v);
      });
}

template <class V, class T, bool kShift>
float write_exp(const void* logits, int64_t n, Scale scale, const float* potential, float shift,
                float* out) {
  if (kShift && shift == 0.0f)
    return write_exp<V, T, false>(logits, n, scale, potential, shift, out);
  const T* x = static_cast<const T*>(logits);
  const V high = V::set(scale.high), low = V::set(scale.low), offset = V::set(-shift);
  V sums[kUnroll] = {V::set(0), V::set(0), V::set(0), V::set(0)};
  const auto value = [&](V logit, V a) {
    const V y = scaled(logit, high, low, a);
    return V::exp(kShift ? V::add(y, offset) : y);
  };
  for_vectors<V>(
      n,
      [&](int64_t i, int lane) {
        prefetch_ahead(x + i);
        const V v = value(V::load(x + i), V::load(potential + i));
        V::store(out + i, v);
        sums[lane] = V::add(sums[lane], v);
      },
      [&](int64_t i, int64_t count) {
        const V v = value(load_partial<V>(x + i, count), load_partial<V>(potential + i, count));
        store_partial<V>(out + i, count, v);
        sums[1] = V::add(sums[1], first<V>(v, count, 0.0f));
      });
  return V::sum(combine(sums));
}

template <class V>
void multiply(const float* x, int64_t n, float factor, float* out, bool stream) {
  const V f = V::set(factor);
  const auto tail = [&](int64_t i, int64_t count) {
    store_partial<V>(out + i, count, V::mul(load_partial<V>(x + i, count), f));
  };
  if (stream) {
    constexpr int64_t kFloat = sizeof(float);
    const int64_t bytes_before = -reinterpret_cast<intptr_t>(out) & (V::kWidth * kFloat - 1);
    const int64_t skipped = bytes_before / kFloat < n ? bytes_before / kFloat : n;
    tail(0, skipped);
    x += skipped, out += skipped, n -= skipped;
    for_vectors<V>(n, [&](int64_t i, int) { V::stream(out + i, V::mul(V::load(x + i), f)); }, tail);
    V::end_streams();
  } else {
    for_vectors<V>(n, [&](int64_t i, int) { V::store(out + i, V::mul(V::load(x + i), f)); }, tail);
  }
}

template <class V, class T>
float maximum(const void* logits, int64_t n, Scale scale, const float* potential) {
  const T* x = static_cast<const T*>(logits);
  const V high = V::set(scale.high), low = V::set(scale.low), zero = V::set(0);
  V largest = V::set(-__builtin_inff());
  const auto value = [&](V logit, V a) { return scaled(logit, high, low, a); };
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        const V a = potential != nullptr ? V::load(potential + i) : zero;
        largest = V::max(largest, value(V::load(x + i), a));
      },
      [&](int64_t i, int64_t count) {
        const V a = potential != nullptr ? load_partial<V>(potential + i, count) : zero;
        const V v = value(load_partial<V>(x + i, count), a);
        largest = V::max(largest, first<V>(v, count, -__builtin_inff()));
      });
  return V::maximum(largest);
}

template <class V, class T>
void column_maximum(const void* logits, int64_t n, Scale scale, float* maximum) {
  const T* x = static_cast<const T*>(logits);
  const V high = V::set(scale.high);
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        V::store(maximum + i, V::max(V::load(maximum + i), V::mul(V::load(x + i), high)));
      },
      [&](int64_t i, int64_t count) {
        const V v = V::mul(load_partial<V>(x + i, count), high);
        store_partial<V>(maximum + i, count, V::max(load_partial<V>(maximum + i, count), v));
      });
}

template <class V, class T>
void column_exp_sum(const void* logits, const void* next_logits, int64_t n, Scale scale,
                    const float* shift, float* maximum, float* sum) {
  const T* x = static_cast<const T*>(logits);
  const T* next = static_cast<const T*>(next_logits);
  const V high = V::set(scale.high), low = V::set(scale.low);
  const auto term = [&](V logit, V offset) {
    return V::exp(scaled(logit, high, low, V::sub(V::set(0), offset)));
  };
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        __builtin_prefetch(next + i);
        const V logit = V::load(x + i);
        V::store(maximum + i, V::max(V::load(maximum + i), V::mul(logit, high)));
        V::store(sum + i, V::add(V::load(sum + i), term(logit, V::load(shift + i))));
      },
      [&](int64_t i, int64_t count) {
        const V logit = load_partial<V>(x + i, count);
        const V largest = V::max(load_partial<V>(maximum + i, count), V::mul(logit, high));
        const V more = term(logit, load_partial<V>(shift + i, count));
        store_partial<V>(maximum + i, count, largest);
        store_partial<V>(sum + i, count, V::add(load_partial<V>(sum + i, count), more));
      });
}

template <class V, class T>
StudentSums student_sums(const void* logits, int64_t n, Scale scale, float shift, const float* q) {
  const T* x = static_cast<const T*>(logits);
  const V high = V::set(scale.high), low = V::set(scale.low), offset = V::set(-shift);
  V totals[kUnroll] = {V::set(0), V::set(0), V::set(0), V::set(0)};
  V agreements[kUnroll] = {V::set(0), V::set(0), V::set(0), V::set(0)};
  for_vectors<V>(
      n,
      [&](int64_t i, int lane) {
        prefetch_ahead(x + i);
        const V logit = V::load(x + i);
        totals[lane] = V::add(totals[lane], V::exp(V::add(scaled(logit, high, low), offset)));
        agreements[lane] = V::multiply_add(V::load(q + i), logit, agreements[lane]);
      },
      [&](int64_t i, int64_t count) {
        const V logit = load_partial<V>(x + i, count);
        const V v = V::exp(V::add(scaled(logit, high, low), offset));
        totals[1] = V::add(totals[1], first<V>(v, count, 0.0f));
        agreements[1] = V::multiply_add(load_partial<V>(q + i, count), logit, agreements[1]);
      });
  return {V::sum(combine(totals)), V::sum(combine(agreements))};
}

template <class V, class T>
void student_gradient(const void* logits, int64_t n, Scale scale, float lse, float softmax_factor,
                      float target_factor, const float* q, void* gradient) {
  const T* x = static_cast<const T*>(logits);
  T* out = static_cast<T*>(gradient);
  const V high = V::set(scale.high), low = V::set(scale.low), offset = V::set(-lse);
  const V softmax_scale = V::set(softmax_factor), target_scale = V::set(-target_factor);
  const auto value = [&](V logit, V target) {
    const V softmax = V::exp(V::add(scaled(logit, high, low), offset));
    return V::multiply_add(target_scale, target, V::mul(softmax_scale, softmax));
  };
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        prefetch_ahead(x + i);
        V::store(out + i, value(V::load(x + i), V::load(q + i)));
      },
      [&](int64_t i, int64_t count) {
        const V v = value(load_partial<V>(x + i, count), load_partial<V>(q + i, count));
        store_partial<V>(out + i, count, v);
      });
}

template <class V>
void merge_totals(const float* before, const float* shift, const float* maximum, const float* sum,
                  int64_t n, float* total) {
  const auto merged = [](V t, V old, V s, V offset, V largest) {
    const V added = V::mul(s, V::exp(V::sub(offset, largest)));
    return V::multiply_add(t, V::exp(V::sub(old, largest)), added);
  };
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        V::store(total + i, merged(V::load(total + i), V::load(before + i), V::load(sum + i),
                                   V::load(shift + i), V::load(maximum + i)));
      },
      [&](int64_t i, int64_t count) {
        const V v = merged(load_partial<V>(total + i, count), load_partial<V>(before + i, count),
                           load_partial<V>(sum + i, count), load_partial<V>(shift + i, count),
                           load_partial<V>(maximum + i, count));
        store_partial<V>(total + i, count, v);
      });
}

}  // namespace
}  // namespace franca::cpu

#include "cpu/adamw_elements.hpp"
#include "cpu/attention_rows.hpp"
#include "cpu/sinkhorn_iteration.hpp"
#include "cpu/swiglu_rows.hpp"
#include "cpu/weight_norm_rows.hpp"

namespace franca::cpu {
namespace {

template <class V, class T>
void fill_dtype(TileKernels& table, DType dtype) {
  const int i = static_cast<int>(dtype);
  table.exp_sum[i] = exp_sum<V, T, true>;
  table.maximum[i] = maximum<V, T>;
  table.column_maximum[i] = column_maximum<V, T>;
  table.column_exp_sum[i] = column_exp_sum<V, T>;
  table.add_exp[i] = add_exp<V, T, true>;
  table.write_exp[i] = write_exp<V, T, true>;
  table.student_sums[i] = student_sums<V, T>;
  table.balance[i] = balance<V, T>;
  table.student_gradient[i] = student_gradient<V, T>;
  table.attention_forward[i] = attention_forward<V, T>;
  table.attention_backward[i] = attention_backward<V, T>;
  fill_weight_norm<V, T>(table, dtype);
  fill_swiglu<V, T>(table, dtype);
}

template <class V>
TileKernels make_table() {
  TileKernels table{};
  fill_dtype<V, float>(table, DType::float32);
  fill_dtype<V, BFloat16>(table, DType::bfloat16);
  fill_dtype<V, Float16>(table, DType::float16);
  table.multiply = multiply<V>;
  table.merge_totals = merge_totals<V>;
  table.adamw = adamw<V>;
  return table;
}

}  // namespace
}  // namespace franca::cpu
