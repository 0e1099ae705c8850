// AdamW and the teacher's average on some elements of a tensor. Included by tile_kernels_impl.hpp;
// see there for why everything is in an anonymous namespace.
//
// Rounded where torch.optim.AdamW (fused) rounds, so that a run may go from one to the other.
#pragma once

#include "cpu/tile_kernels.hpp"

namespace franca::cpu {
namespace {

template <class V>
struct AdamWStep {
  explicit AdamWStep(const AdamWFactors& f)
      : clip(V::set(f.clip)),
        kept_parameter(V::set(f.kept_parameter)),
        gradient_share(V::set(f.gradient_share)),
        beta2(V::set(f.beta2)),
        square_share(V::set(f.square_share)),
        step_size(V::set(f.step_size)),
        correction(V::set(f.correction)),
        eps(V::set(f.eps)),
        kept_teacher(V::set(f.kept_teacher)),
        taken_student(V::set(f.taken_student)) {}

  void update(V* p, V g, V* m, V* v) const {
    g = V::mul(g, clip);
    *m = V::fma(gradient_share, V::sub(g, *m), *m);
    *v = V::fma(V::mul(square_share, g), g, V::mul(*v, beta2));
    const V denominator = V::add(V::div(V::sqrt(*v), correction), eps);
    *p = V::add(V::mul(*p, kept_parameter), V::div(V::mul(step_size, *m), denominator));
  }

  V average(V t, V p) const { return V::add(V::mul(t, kept_teacher), V::mul(p, taken_student)); }

  const V clip, kept_parameter, gradient_share, beta2, square_share, step_size, correction, eps,
      kept_teacher, taken_student;
};

template <class V, bool kTeacher>
void adamw_elements(const UpdatedTensor& tensor, int64_t begin, int64_t n,
                    const AdamWFactors& factors) {
  const AdamWStep<V> step(factors);
  float* parameter = tensor.parameter + begin;
  const float* gradient = tensor.gradient + begin;
  float* exp_avg = tensor.exp_avg + begin;
  float* exp_avg_sq = tensor.exp_avg_sq + begin;
  float* teacher = kTeacher ? tensor.teacher + begin : nullptr;
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        V p = V::load(parameter + i), m = V::load(exp_avg + i), v = V::load(exp_avg_sq + i);
        step.update(&p, V::load(gradient + i), &m, &v);
        V::store(parameter + i, p);
        V::store(exp_avg + i, m);
        V::store(exp_avg_sq + i, v);
        if (kTeacher) V::store(teacher + i, step.average(V::load(teacher + i), p));
      },
      [&](int64_t i, int64_t count) {
        V p = load_partial<V>(parameter + i, count), m = load_partial<V>(exp_avg + i, count),
          v = load_partial<V>(exp_avg_sq + i, count);
        step.update(&p, load_partial<V>(gradient + i, count), &m, &v);
        store_partial<V>(parameter + i, count, p);
        store_partial<V>(exp_avg + i, count, m);
        store_partial<V>(exp_avg_sq + i, count, v);
        if (kTeacher) {
          store_partial<V>(teacher + i, count,
                           step.average(load_partial<V>(teacher + i, count), p));
        }
      });
}

template <class V>
void adamw(const UpdatedTensor& tensor, int64_t begin, int64_t n, const AdamWFactors& factors) {
  if (tensor.teacher != nullptr) {
    adamw_elements<V, true>(tensor, begin, n, factors);
  } else {
    adamw_elements<V, false>(tensor, begin, n, factors);
  }
}

}  // namespace
}  // namespace franca::cpu
