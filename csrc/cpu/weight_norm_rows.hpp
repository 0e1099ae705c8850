// Rows of weight-normalised prototypes over a vector type; part of tile_kernels_impl.hpp, where it
// is said why everything is in an anonymous namespace.

namespace franca::cpu {
namespace {

// Calls body(v, w, lane) with the vectors of two rows, of which the last one is filled up with 0.
template <class V, class T, class U, class Body>
inline void for_pairs(const T* v, const U* w, int64_t n, Body body) {
  for_vectors<V>(
      n, [&](int64_t i, int lane) { body(V::load(v + i), V::load(w + i), lane); },
      [&](int64_t i, int64_t count) {
        body(load_partial<V>(v + i, count), load_partial<V>(w + i, count), 1);
      });
}

template <class V, class T, class Out>
void normalize_row(const void* prototype, int64_t n, float g, void* out) {
  const T* v = static_cast<const T*>(prototype);
  Out* w = static_cast<Out*>(out);
  V squares[kUnroll] = {V::set(0), V::set(0), V::set(0), V::set(0)};
  for_pairs<V>(v, v, n,
               [&](V x, V, int lane) { squares[lane] = V::multiply_add(x, x, squares[lane]); });
  const V scale = V::set(g / __builtin_sqrtf(V::sum(combine(squares))));
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        prefetch_ahead(v + i);
        V::store(w + i, V::mul(V::load(v + i), scale));
      },
      [&](int64_t i, int64_t count) {
        store_partial<V>(w + i, count, V::mul(load_partial<V>(v + i, count), scale));
      });
}

template <class V, class T, class U>
float prototype_gradient_row(const void* prototype, const void* gradient, int64_t n, float g,
                             const float* dscale, void* out) {
  const T* v = static_cast<const T*>(prototype);
  const U* dw = static_cast<const U*>(gradient);
  T* dv = static_cast<T*>(out);
  V squares[kUnroll] = {V::set(0), V::set(0), V::set(0), V::set(0)};
  V products[kUnroll] = {V::set(0), V::set(0), V::set(0), V::set(0)};
  for_pairs<V>(v, dw, n, [&](V x, V u, int lane) {
    squares[lane] = V::multiply_add(x, x, squares[lane]);
    products[lane] = V::multiply_add(x, u, products[lane]);
  });
  const float norm = __builtin_sqrtf(V::sum(combine(squares))), scale = g / norm;
  const float dg = (dscale != nullptr ? *dscale : V::sum(combine(products))) / norm;
  const V factor = V::set(dscale != nullptr ? 1.0f : scale), along = V::set(-dg * (scale / norm));
  const auto value = [&](V x, V u) { return V::multiply_add(along, x, V::mul(factor, u)); };
  for_vectors<V>(
      n,
      [&](int64_t i, int) {
        prefetch_ahead(v + i);
        V::store(dv + i, value(V::load(v + i), V::load(dw + i)));
      },
      [&](int64_t i, int64_t count) {
        store_partial<V>(dv + i, count,
                         value(load_partial<V>(v + i, count), load_partial<V>(dw + i, count)));
      });
  return dg;
}

template <class V, class T, class U>
void fill_weight_norm(TileKernels& table, DType dtype, DType other) {
  const int i = static_cast<int>(dtype), j = static_cast<int>(other);
  table.normalize_row[i][j] = normalize_row<V, T, U>;
  table.prototype_gradient_row[i][j] = prototype_gradient_row<V, T, U>;
}

template <class V, class T>
void fill_weight_norm(TileKernels& table, DType dtype) {
  fill_weight_norm<V, T, float>(table, dtype, DType::float32);
  fill_weight_norm<V, T, BFloat16>(table, dtype, DType::bfloat16);
  fill_weight_norm<V, T, Float16>(table, dtype, DType::float16);
}

}  // namespace
}  // namespace franca::cpu
