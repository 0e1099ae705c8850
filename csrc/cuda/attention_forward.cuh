// softmax(scale q k^T) v with a running maximum. Keys and values of sequences that fit lie wholly
// in shared memory, as many sequences to a block as there is room for; those of longer ones are
// streamed.
//
// A warp has as many units of queries as its registers hold, so that each matrix load of keys or
// values serves them all. The running maximum need not be exact: any shift near it keeps the
// exponentials in range. It is raised only where a score exceeds it by more than kSlack, which
// after the first keys is rare. What a row gives depends on that row alone.
#pragma once

#include "cuda/attention_tile.cuh"

namespace franca::cuda {

struct ForwardParameters {
  Packed q, k, v, out;
  float* lse;        // [tokens, heads]
  float scale_log2;  // positive, times log2(e)
};

template <int D>
constexpr int kRowUnits = 128 / D;  // of a warp at a time
constexpr float kSlack = 8.0f;      // exponentials reach 2^kSlack, which float16 holds
constexpr int kForwardWarps = 4;
constexpr int kForwardBlocks = 3;  // of a multiprocessor: 168 registers for each thread
constexpr int kFirstRows = 128;    // of the keys and values that are awaited first

// What a warp knows of its queries. Of each unit a lane holds two rows.
//
// The sums are divided by the total of the weights as they are rounded for the product: what
// rounding does to a weight that outweighs the others then cancels, though with such a shift it is
// rarely 1. The log-sum-exp is that of the weights before.
template <int D, int kUnits>
struct Attention {
  Sums<D> sums[kUnits];
  float rounded[kUnits][4];  // total, as an accumulator; of its columns [0] and [2] are used
  float shift[kUnits][2];    // of the scaled scores
  float total[kUnits][2];    // of the lane's own columns

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      sums[u].clear();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        shift[u][half] = -kInfinity;
        total[u][half] = 0.0f;
        rounded[u][2 * half] = rounded[u][2 * half + 1] = 0.0f;
      }
    }
  }
};

// Makes the maximum the shift of rows where it is more than kSlack greater. `maximum` is that of
// the lane's own columns, before the scale.
template <int D, int kUnits>
__device__ __forceinline__ void raise_shift(Attention<D, kUnits>& a,
                                            const float (&maximum)[kUnits][2], float scale) {
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float largest = warp_maximum<4>(maximum[u][half]) * scale;
      const float old = a.shift[u][half];
      a.shift[u][half] = largest > old + kSlack ? largest : old;
      const float factor = exp2_fast(old - a.shift[u][half]);
      a.total[u][half] *= factor;
      a.rounded[u][2 * half] *= factor;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        a.sums[u].value[j][2 * half] *= factor;
        a.sums[u].value[j][2 * half + 1] *= factor;
      }
    }
  }
}

// Scores become weights, which the totals add up.
__device__ __forceinline__ void weigh(Scores& scores, float (&total)[2], const float (&shift)[2],
                                      float scale) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float& value = scores.value[i / 4][i % 4];
    value = exp2_fast(fmaf(value, scale, -shift[i % 4 / 2]));
    total[i % 4 / 2] += value;
  }
}

// Where a lane reads keys and values.
struct KeyPlace {
  SharedAddress key, value;
};

// Adds 16 keys, of which in the last step `left` exist. between() is called when the queries are
// not needed any more.
template <class T, bool last, int D, int kUnits, class Between>
__device__ __forceinline__ void attend_unit(Attention<D, kUnits>& a,
                                            const Rows<D> (&queries)[kRowUnits<D>], float scale,
                                            const KeyPlace& place, int left,
                                            const Between& between) {
  Scores scores[kUnits];
  multiply<T, D>(scores, [&](int u, int k) { return queries[u].step[k]; }, place.key);
  between();
  float maximum[kUnits][2];
  bool grew = false;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = i / 2, e = 2 * half + i % 2;
        float& value = scores[u].value[j][e];
        if (last && lane_column(j, e) >= left) value = -kInfinity;
        maximum[u][half] = i == 0 ? value : fmaxf(maximum[u][half], value);
      }
      grew |= fmaf(maximum[u][half], scale, -a.shift[u][half]) > kSlack;
    }
  }
  if (warp_any(grew)) raise_shift(a, maximum, scale);
  Fragment weights[kUnits];
  const uint32_t ones = make_pair<T>(1.0f, 1.0f);
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    weigh(scores[u], a.total[u], a.shift[u], scale);
    weights[u] = as_factor<T>(scores[u]);
    multiply_add<T>(a.rounded[u], weights[u], ones, ones);
  }
  add_weighted<T, D>(a.sums, weights, place.value);
}

// Adds the `left` keys from `place` on, or those of the next `rows` rows; returns how many are
// left.
template <class T, int D, int kUnits, class Between>
__device__ __forceinline__ int attend(Attention<D, kUnits>& a,
                                      const Rows<D> (&queries)[kRowUnits<D>], float scale,
                                      KeyPlace& place, int rows, int left, const Between& between) {
#pragma unroll 1
  for (; rows > 0 && left > kUnit; rows -= kUnit, left -= kUnit) {
    attend_unit<T, false>(a, queries, scale, place, kUnit, [] {});
    place.key = moved<D>(place.key, 0, kUnit);
    place.value = moved<D>(place.value, 0, kUnit);
  }
  if (rows <= 0) return left;
  attend_unit<T, true>(a, queries, scale, place, left, between);
  return 0;
}

// Divides by the totals and stores rows and their log-sum-exp.
template <class T, int D, int kUnits>
__device__ __forceinline__ void finish_rows(const ForwardParameters& p, int n_heads,
                                            const Task& task, int unit,
                                            const Attention<D, kUnits>& a, uint4* stage) {
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int row = lane_row(unit + u, 0);
    float* lse = p.lse + (task.first_token + row) * n_heads + task.head;
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = warp_sum<4>(a.total[u][half]);
      factor[half] = reciprocal_fast(a.rounded[u][2 * half]);
      if (lane_index() % 4 == 0 && row + 8 * half < task.length) {
        lse[8 * half * n_heads] = (a.shift[u][half] + log2_fast(total)) * kLn2;
      }
    }
    store_rows<T>(p.out, task, unit + u, a.sums[u], factor, stage);
  }
}

template <int D>
__device__ __forceinline__ void read_queries(Rows<D> (&queries)[kRowUnits<D>], const Packed& q,
                                             const Task& sequence, int group) {
#pragma unroll
  for (int u = 0; u < kRowUnits<D>; ++u) {
    read_rows(queries[u], q, sequence, group * kRowUnits<D> + u);
  }
}

template <int D>
__device__ __forceinline__ void deal_queries(Rows<D> (&queries)[kRowUnits<D>], uint4* stage) {
#pragma unroll
  for (int u = 0; u < kRowUnits<D>; ++u) deal_rows(queries[u], stage);
}

// What a warp does at a time: kRowUnits units of queries, a group, of a sequence of the task.
template <int D>
struct Item {
  int sequence = 0;
  int group;

  __device__ __forceinline__ explicit Item(const Task& task) : group(warp_index()) { wrap(task); }
  __device__ __forceinline__ bool exists(const Task& task) const {
    return sequence < task.n_sequences;
  }
  __device__ __forceinline__ void advance(const Task& task) {
    group += warp_count();
    wrap(task);
  }
  __device__ __forceinline__ int unit() const { return group * kRowUnits<D>; }
  // The task that has its sequence only.
  __device__ __forceinline__ Task own(const Task& task) const {
    return {task.first_token + sequence * task.length, task.length, task.head, 1, 0};
  }

 private:
  __device__ __forceinline__ void wrap(const Task& task) {
    const int groups = divide_up(units_of(task.length), kRowUnits<D>);
    sequence += group / groups;
    group %= groups;
  }
};

// Keys and values of a task: those of its sequences follow each other, each in whole units.
template <int D>
struct WholeKeys {
  uint4 *keys, *values;
  int padded;  // rows of a sequence
  int rows;

  __device__ __forceinline__ WholeKeys(uint4* begin, const Task& task)
      : keys(begin), padded(units_of(task.length) * kUnit), rows(task.n_sequences * padded) {
    values = keys + rows * kHeadPacks<D>;
  }

  __device__ __forceinline__ KeyPlace place(int row) const {
    return {dot_place<D>(keys + row * kHeadPacks<D>), sum_place<D>(values + row * kHeadPacks<D>)};
  }

  // Starts all copies, in two groups: the first kFirstRows rows, and the others.
  __device__ __forceinline__ void fetch(const ForwardParameters& p, const Task& task) const {
    RowCopies<D, 2> copies({keys, values}, {&p.k, &p.v}, task, 0, padded);
    copies.copy_until(rows < kFirstRows ? rows : kFirstRows);
    commit_copies();
    copies.copy_until(rows);
    commit_copies();
  }
};

// The first of the keys and values of a task are used while the others arrive. Every warp waits for
// either part once, when it comes to that.
struct Arrival {
  int rows;

  __device__ __forceinline__ Arrival() : rows(kFirstRows) {
    wait_for_copies<1>();
    block_barrier();
  }
  __device__ __forceinline__ void complete() {
    if (rows != kFirstRows) return;
    wait_for_copies<0>();
    block_barrier();
    rows = INT32_MAX;
  }
};

// Does an item and starts reading the queries of the next.
template <class T, int D, int kUnits>
__device__ __forceinline__ void attend_item(const ForwardParameters& p, const Schedule& schedule,
                                            const Task& task, Rows<D> (&queries)[kRowUnits<D>],
                                            Item<D>& item, Arrival& arrival, uint4* begin,
                                            uint4* stage) {
  const WholeKeys<D> shared(begin, task);
  const Item<D> now = item;
  const int first = now.sequence * shared.padded;
  KeyPlace place = shared.place(first);
  Attention<D, kUnits> a;
  a.clear();
  int left = task.length;
  while (true) {
    left = attend<T>(a, queries, p.scale_log2, place, arrival.rows - first, left, [&] {
      item.advance(task);
      if (item.exists(task)) read_queries(queries, p.q, item.own(task), item.group);
    });
    if (left == 0) break;
    arrival.complete();
  }
  finish_rows<T>(p, schedule.n_heads, now.own(task), now.unit(), a, stage);
}

// One block has whole sequences, and each of its warps some of their queries in turn.
template <class T, int D>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, kForwardBlocks)
    attention_forward_kernel(const __grid_constant__ ForwardParameters p,
                             const __grid_constant__ Schedule schedule) {
  const Task& task = keep_task<true>(schedule);
  uint4* stages = reinterpret_cast<uint4*>(shared_memory() + kTaskBytes);
  uint4* stage = stages + warp_index() * kStagePacks;
  uint4* begin = stages + warp_count() * kStagePacks;
  Rows<D> queries[kRowUnits<D>];
  Item<D> item(task);
  if (item.exists(task)) read_queries(queries, p.q, item.own(task), item.group);
  WholeKeys<D>(begin, task).fetch(p, task);
  Arrival arrival;
#pragma unroll 1
  while (item.exists(task)) {
    deal_queries(queries, stage);
    if (kRowUnits<D> == 1 || units_of(task.length) - item.unit() == 1) {
      attend_item<T, D, 1>(p, schedule, task, queries, item, arrival, begin, stage);
    } else {
      attend_item<T, D, kRowUnits<D>>(p, schedule, task, queries, item, arrival, begin, stage);
    }
  }
  arrival.complete();
}

// One block has a group of queries for each warp; keys and values pass by in two alternating
// buffers.
template <class T, int D>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 2)
    attention_forward_streamed_kernel(const __grid_constant__ ForwardParameters p,
                                      const __grid_constant__ Schedule schedule) {
  const Task& task = keep_task<false>(schedule);
  const int group = task.part * warp_count() + warp_index();
  uint4* shared = reinterpret_cast<uint4*>(shared_memory() + kTaskBytes);
  uint4* stage = shared + 4 * kStreamed * kHeadPacks<D> + warp_index() * kStagePacks;
  constexpr int kFactor = kStreamed * kHeadPacks<D>;
  Rows<D> queries[kRowUnits<D>];
  read_queries(queries, p.q, task, group);
  deal_queries(queries, stage);
  Attention<D, kRowUnits<D>> a;
  a.clear();
  stream_columns(
      task.length,
      [&](int buffer, int first) {
        uint4* keys = shared + 2 * buffer * kFactor;
        RowCopies<D, 2>({keys, keys + kFactor}, {&p.k, &p.v}, task, first, INT32_MAX)
            .copy_until(kStreamed);
      },
      [&](int buffer, int first) {
        const uint4* keys = shared + 2 * buffer * kFactor;
        KeyPlace place{dot_place<D>(keys), sum_place<D>(keys + kFactor)};
        attend<T>(a, queries, p.scale_log2, place, kStreamed, task.length - first, [] {});
      });
  finish_rows<T>(p, schedule.n_heads, task, group * kRowUnits<D>, a, stage);
}

}  // namespace franca::cuda
