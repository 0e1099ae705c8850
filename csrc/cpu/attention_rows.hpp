// Attention of one head over one sequence, over a vector type; part of tile_kernels_impl.hpp, where
// it is said why everything is in an anonymous namespace.
//
// Sequences are short, so that all products are small: what they read lies in scratch in float,
// with rows filled up with zeros to whole vectors, and queries are taken kAttentionRows at a time.

namespace franca::cpu {
namespace {

// Rows of [., width] floats in scratch, width a multiple of kAttentionPadding.
struct Panel {
  float* data;
  int64_t width;

  float* row(int64_t i) const { return data + i * width; }
};

// Scratch is dealt out from its beginning.
struct Scratch {
  float* next;

  Panel take(int64_t rows, int64_t columns) {
    const Panel panel{next, padded(columns)};
    next += rows * panel.width;
    return panel;
  }
};

// The left factor of a product: element (i, j) is at data[i * row + j * column].
struct Left {
  const float* data;
  int64_t row;
  int64_t column;
};

inline Left as_left(Panel panel) {
  return {panel.data, panel.width, 1};
}
inline Left transposed(Panel panel) {
  return {panel.data, 1, panel.width};
}

// out = left right, or added to it, for kRows rows and kVectors vectors of columns.
template <class V, bool kAdd, int kRows, int kVectors>
inline void product_tile(Left left, const float* right, int64_t right_width, int64_t depth,
                         float* out, int64_t out_width) {
  V sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kVectors; ++c) {
      sums[r][c] = kAdd ? V::load(out + r * out_width + c * V::kWidth) : V::set(0.0f);
    }
  }
  for (int64_t i = 0; i < depth; ++i) {
    V values[kVectors];
    for (int c = 0; c < kVectors; ++c) values[c] = V::load(right + i * right_width + c * V::kWidth);
    for (int r = 0; r < kRows; ++r) {
      const V factor = V::set(left.data[r * left.row + i * left.column]);
      for (int c = 0; c < kVectors; ++c) {
        sums[r][c] = V::multiply_add(factor, values[c], sums[r][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kVectors; ++c) V::store(out + r * out_width + c * V::kWidth, sums[r][c]);
  }
}

// All rows of kVectors vectors of columns: kRows at a time, and what is left in ever smaller tiles.
template <class V, bool kAdd, int kRows, int kVectors>
inline void product_rows(Left left, const float* right, int64_t right_width, int64_t depth,
                         int64_t rows, float* out, int64_t out_width) {
  for (; rows >= kRows; rows -= kRows, left.data += kRows * left.row, out += kRows * out_width) {
    product_tile<V, kAdd, kRows, kVectors>(left, right, right_width, depth, out, out_width);
  }
  if constexpr (kRows > 1) {
    product_rows<V, kAdd, kRows / 2, kVectors>(left, right, right_width, depth, rows, out,
                                               out_width);
  }
}

// out[rows, columns of out] = left[rows, depth] right[depth, columns of out], or added to it. Tiles
// have eight sums, as many as hide the latency of an addition.
template <class V, bool kAdd = false>
inline void product(Left left, Panel right, int64_t depth, int64_t rows, Panel out) {
  int64_t c = 0;
  for (; c + 2 * V::kWidth <= out.width; c += 2 * V::kWidth) {
    product_rows<V, kAdd, 4, 2>(left, right.data + c, right.width, depth, rows, out.data + c,
                                out.width);
  }
  if (c < out.width) {
    product_rows<V, kAdd, 8, 1>(left, right.data + c, right.width, depth, rows, out.data + c,
                                out.width);
  }
}

// Rows of a head times a factor.
template <class V, class T>
inline void load_rows(HeadRows source, int64_t rows, int64_t columns, float factor, Panel out) {
  const V f = V::set(factor);
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = static_cast<const T*>(source.data) + i * source.stride;
    float* y = out.row(i);
    int64_t c = 0;
    for (; c + V::kWidth <= columns; c += V::kWidth) V::store(y + c, V::mul(V::load(x + c), f));
    if (c < columns) {
      V::store(y + c, V::mul(load_partial<V>(x + c, columns - c), f));
      c += V::kWidth;
    }
    for (; c < out.width; c += V::kWidth) V::store(y + c, V::set(0.0f));
  }
}

template <class V, class T>
inline void store_rows(Panel panel, int64_t rows, int64_t columns, float factor, HeadRows target) {
  const V f = V::set(factor);
  for (int64_t i = 0; i < rows; ++i) {
    const float* x = panel.row(i);
    T* y = static_cast<T*>(target.data) + i * target.stride;
    int64_t c = 0;
    for (; c + V::kWidth <= columns; c += V::kWidth) V::store(y + c, V::mul(V::load(x + c), f));
    if (c < columns) store_partial<V>(y + c, columns - c, V::mul(V::load(x + c), f));
  }
}

inline void transpose(Panel panel, int64_t rows, int64_t columns, Panel out) {
  for (int64_t c = 0; c < columns; ++c) {
    float* y = out.row(c);
    for (int64_t i = 0; i < rows; ++i) y[i] = panel.data[i * panel.width + c];
    for (int64_t i = rows; i < out.width; ++i) y[i] = 0.0f;
  }
}

template <class V>
inline void fill_zero(Panel panel, int64_t rows) {
  for (int64_t i = 0; i < rows * panel.width; i += V::kWidth) {
    V::store(panel.data + i, V::set(0.0f));
  }
}

// Scores [keys, queries] become the shares p of the keys in each query. Queries lie side by side,
// so that nothing is summed across a vector. lse: [queries]
template <class V>
inline void softmax(Panel scores, int64_t keys, float* lse) {
  for (int64_t c = 0; c < scores.width; c += V::kWidth) {
    V largest = V::load(scores.data + c);
    for (int64_t i = 1; i < keys; ++i) largest = V::max(largest, V::load(scores.row(i) + c));
    V sum = V::set(0.0f);
    for (int64_t i = 0; i < keys; ++i) {
      const V p = V::exp(V::sub(V::load(scores.row(i) + c), largest));
      V::store(scores.row(i) + c, p);
      sum = V::add(sum, p);
    }
    // The logarithm makes a number of NaN, of which the backward must know.
    V::store(lse + c, V::add(V::add(largest, log(sum)), V::sub(sum, sum)));
    const V factor = V::div(V::set(1.0f), sum);
    for (int64_t i = 0; i < keys; ++i) {
      V::store(scores.row(i) + c, V::mul(V::load(scores.row(i) + c), factor));
    }
  }
}

// Scores become shares p, and their gradients g become p (g - sum p g / sum p). The shares sum to 1
// but for the rounding of lse, which large gradients would multiply.
template <class V>
inline void softmax_gradient(Panel scores, Panel gradients, int64_t keys, const float* lse) {
  for (int64_t c = 0; c < scores.width; c += V::kWidth) {
    const V shift = V::load(lse + c);
    V sum = V::set(0.0f), total = V::set(0.0f);
    for (int64_t i = 0; i < keys; ++i) {
      const V p = V::exp(V::sub(V::load(scores.row(i) + c), shift));
      V::store(scores.row(i) + c, p);
      sum = V::multiply_add(p, V::load(gradients.row(i) + c), sum);
      total = V::add(total, p);
    }
    const V mean = V::div(sum, total);
    for (int64_t i = 0; i < keys; ++i) {
      float* g = gradients.row(i) + c;
      V::store(g, V::mul(V::load(scores.row(i) + c), V::sub(V::load(g), mean)));
    }
  }
}

template <class V, class T>
void attention_forward(const AttentionHead& head, float* memory) {
  const int64_t length = head.length, dim = head.dim;
  Scratch scratch{memory};
  const Panel keys = scratch.take(length, dim), values = scratch.take(length, dim);
  const Panel rows = scratch.take(kAttentionRows, dim);
  Panel queries = scratch.take(dim, kAttentionRows), p = scratch.take(length, kAttentionRows);
  load_rows<V, T>(head.k, length, dim, 1.0f, keys);
  load_rows<V, T>(head.v, length, dim, 1.0f, values);
  for (int64_t first = 0; first < length; first += kAttentionRows) {
    const int64_t n = length - first < kAttentionRows ? length - first : kAttentionRows;
    float lse[kAttentionRows];
    queries.width = p.width = padded(n);
    load_rows<V, T>(head.q.from(first, sizeof(T)), n, dim, head.scale, rows);
    transpose(rows, n, dim, queries);
    product<V>(as_left(keys), queries, dim, length, p);
    softmax<V>(p, length, lse);
    for (int64_t i = 0; i < n; ++i) head.lse[(first + i) * head.lse_stride] = lse[i];
    product<V>(transposed(p), values, length, n, rows);
    store_rows<V, T>(rows, n, dim, 1.0f, head.out.from(first, sizeof(T)));
  }
}

// With the scale taken into q: dv = p dout; ds as in softmax_gradient; dk = ds q; dq = scale ds^T
// k.
template <class V, class T>
void attention_backward(const AttentionHead& head, float* memory) {
  const int64_t length = head.length, dim = head.dim;
  Scratch scratch{memory};
  const Panel keys = scratch.take(length, dim), values = scratch.take(length, dim);
  const Panel dk = scratch.take(length, dim), dv = scratch.take(length, dim);
  const Panel q = scratch.take(kAttentionRows, dim), grad = scratch.take(kAttentionRows, dim);
  Panel columns = scratch.take(dim, kAttentionRows);
  Panel p = scratch.take(length, kAttentionRows), ds = scratch.take(length, kAttentionRows);
  load_rows<V, T>(head.k, length, dim, 1.0f, keys);
  load_rows<V, T>(head.v, length, dim, 1.0f, values);
  fill_zero<V>(dk, length);
  fill_zero<V>(dv, length);
  for (int64_t first = 0; first < length; first += kAttentionRows) {
    const int64_t n = length - first < kAttentionRows ? length - first : kAttentionRows;
    float lse[kAttentionRows] = {};
    columns.width = p.width = ds.width = padded(n);
    for (int64_t i = 0; i < n; ++i) lse[i] = head.lse[(first + i) * head.lse_stride];
    load_rows<V, T>(head.q.from(first, sizeof(T)), n, dim, head.scale, q);
    load_rows<V, T>(head.grad_out.from(first, sizeof(T)), n, dim, 1.0f, grad);
    transpose(q, n, dim, columns);
    product<V>(as_left(keys), columns, dim, length, p);
    transpose(grad, n, dim, columns);
    product<V>(as_left(values), columns, dim, length, ds);
    softmax_gradient<V>(p, ds, length, lse);
    product<V, true>(as_left(p), grad, n, length, dv);
    product<V, true>(as_left(ds), q, n, length, dk);
    product<V>(transposed(ds), keys, length, n, q);
    store_rows<V, T>(q, n, dim, head.scale, head.dq.from(first, sizeof(T)));
  }
  store_rows<V, T>(dk, length, dim, 1.0f, head.dk);
  store_rows<V, T>(dv, length, dim, 1.0f, head.dv);
}

}  // namespace
}  // namespace franca::cpu
