// Rows of SwiGLU over a vector type; part of tile_kernels_impl.hpp, where it is said why everything
// is in an anonymous namespace.

namespace franca::cpu {
namespace {

// s(g) and what it lacks of 1. The exponential is that of -|g|: far below 0 the sigmoid is then 0,
// and not the inverse of the largest exponential that there is, which a large gate would multiply.
template <class V>
inline void sigmoid(V g, V* s, V* lack) {
  const V zero = V::set(0), one = V::set(1.0f);
  const V e = V::exp(V::sub(zero, V::max(V::sub(zero, g), g)));
  const V larger = V::div(one, V::add(one, e)), smaller = V::mul(e, larger);
  *s = V::where_negative(g, smaller, larger);
  *lack = V::where_negative(g, larger, smaller);
}

template <class V, class T>
void swiglu_row(const void* row, int64_t width, void* product) {
  const T *gate = static_cast<const T*>(row), *value = gate + width;
  T* out = static_cast<T*>(product);
  const auto result = [](V g, V v) {
    V s, lack;
    sigmoid(g, &s, &lack);
    return V::mul(V::mul(g, s), v);
  };
  for_vectors<V>(
      width,
      [&](int64_t i, int) { V::store(out + i, result(V::load(gate + i), V::load(value + i))); },
      [&](int64_t i, int64_t count) {
        const V v = result(load_partial<V>(gate + i, count), load_partial<V>(value + i, count));
        store_partial<V>(out + i, count, v);
      });
}

template <class V, class T>
void swiglu_gradient_row(const void* row, const void* gradient, int64_t width, void* result) {
  const T *gate = static_cast<const T*>(row), *value = gate + width;
  const T* dout = static_cast<const T*>(gradient);
  T *dgate = static_cast<T*>(result), *dvalue = dgate + width;
  // The gate's part first: value times gradient could overflow beside a sigmoid of 0.
  const auto of_gate = [](V g, V v, V d, V s, V lack) {
    return V::mul(V::mul(V::multiply_add(V::mul(g, s), lack, s), v), d);
  };
  for_vectors<V>(
      width,
      [&](int64_t i, int) {
        const V g = V::load(gate + i), d = V::load(dout + i);
        V s, lack;
        sigmoid(g, &s, &lack);
        V::store(dgate + i, of_gate(g, V::load(value + i), d, s, lack));
        V::store(dvalue + i, V::mul(V::mul(g, s), d));
      },
      [&](int64_t i, int64_t count) {
        const V g = load_partial<V>(gate + i, count), d = load_partial<V>(dout + i, count);
        V s, lack;
        sigmoid(g, &s, &lack);
        const V v = load_partial<V>(value + i, count);
        store_partial<V>(dgate + i, count, of_gate(g, v, d, s, lack));
        store_partial<V>(dvalue + i, count, V::mul(V::mul(g, s), d));
      });
}

template <class V, class T>
void fill_swiglu(TileKernels& table, DType dtype) {
  table.swiglu_row[static_cast<int>(dtype)] = swiglu_row<V, T>;
  table.swiglu_gradient_row[static_cast<int>(dtype)] = swiglu_gradient_row<V, T>;
}

}  // namespace
}  // namespace franca::cpu
