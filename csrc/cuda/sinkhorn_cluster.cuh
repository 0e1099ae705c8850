// The row half-step with its masses in one read of the logits.
//
// A team of blocks holds a row on chip: each block its part of the columns, each thread 32 of them.
// The thread computes e = exp(z/T + a - maximum of its warp) once, the team agrees on the row
// potential through distributed shared memory, and e times a factor of the row is what the thread
// adds to the masses of its columns, which stay in registers for all rows of the team.
//
// All blocks of a launch form clusters of one size. A cluster serves one head; where that head
// needs fewer blocks, the cluster holds several teams with different rows.
#pragma once

#include "cuda/logits.cuh"
#include "cuda/primitives/cluster.cuh"

namespace franca::cuda {

constexpr int kRowColumns = 32;       // of one thread
constexpr int kRowMassThreads = 512;  // at most
constexpr int kLargestCluster = 16;
constexpr int kStageBytesPerThread = 256;

template <class T>
constexpr int kStages = kStageBytesPerThread / (kRowColumns * static_cast<int>(sizeof(T)));

struct RowMassPlan {
  int threads;
  int cluster;
  int n_clusters;                // 0: this device cannot hold a row on chip
  int team[kMaxHeads];           // blocks that share a row
  int first_cluster[kMaxHeads];  // of each head
  int groups[kMaxHeads];         // teams of each head; team g takes the rows g, g + groups, ...
};

inline std::size_t row_mass_shared_bytes(int threads, int cluster) {
  const std::size_t pairs = 2 * static_cast<std::size_t>(cluster) * (threads / kWarpSize);
  return static_cast<std::size_t>(threads) * (kRowColumns * sizeof(float) + kStageBytesPerThread) +
         pairs * sizeof(float2);
}

// A thread's part of the row: pack j holds columns (j * threads + thread) * kPack of the block.
template <class T>
struct RowPart {
  static constexpr int kPacks = kRowColumns / kPack<T>;
  const HeadView& head;
  int64_t first_column;  // of the block
  int threads;

  __device__ __forceinline__ int64_t column(int pack) const {
    return first_column + static_cast<int64_t>(pack * threads + threadIdx.x) * kPack<T>;
  }

  // Starts the copy of row n to this thread's packs of a stage; padding rows become zeros.
  __device__ __forceinline__ void fetch(uint4* stage, int64_t n, int64_t n_valid) const {
    const T* row = row_of<T>(head, n < n_valid ? n : 0);
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      uint4* to = stage + j * threads + threadIdx.x;
      const int64_t left = n < n_valid ? head.columns - column(j) : 0;
      if (head.vectors) {
        const auto bytes = static_cast<int>(smaller(left, kPack<T>) * static_cast<int>(sizeof(T)));
        copy_async(to, bytes > 0 ? row + column(j) : row, bytes > 0 ? bytes : 0);
      } else {
        *to = load_pack(row + column(j), left, false);
      }
    }
    commit_copies();
  }

  // The exponents z/T + a of this thread's columns.
  __device__ __forceinline__ void exponents(float (&x)[kRowColumns], const uint4* stage,
                                            const float4* potential,
                                            InverseTemperature scale) const {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      float z[kPack<T>];
      unpack(z, stage[j * threads + threadIdx.x], static_cast<const T*>(nullptr));
#pragma unroll
      for (int q = 0; q < kPack<T> / 4; ++q) {
        const float4 a = potential[(j * (kPack<T> / 4) + q) * threads + threadIdx.x];
        float* to = x + j * kPack<T> + 4 * q;
        to[0] = exponent(z[4 * q], scale, a.x);
        to[1] = exponent(z[4 * q + 1], scale, a.y);
        to[2] = exponent(z[4 * q + 2], scale, a.z);
        to[3] = exponent(z[4 * q + 3], scale, a.w);
      }
    }
  }
};

// Replaces x by exp(x - maximum of the warp) and returns the warp's log-sum-exp.
__device__ __forceinline__ LogSumExp exponentiate(float (&x)[kRowColumns]) {
  LogSumExp sum;
#pragma unroll
  for (int i = 0; i < kRowColumns; ++i) sum.maximum = fmaxf(sum.maximum, x[i]);
  sum.maximum = warp_maximum(sum.maximum);
  const float shift = LogSumExp::shift(sum.maximum);
#pragma unroll
  for (int i = 0; i < kRowColumns; ++i) {
    x[i] = fast_exp(x[i] - shift);
    sum.total += x[i];
  }
  sum.total = warp_sum(sum.total);
  return sum;
}

// The row's log-sum-exp from those of all warps of the team, in all threads.
__device__ __forceinline__ LogSumExp merge_team(const float2* pairs, int count) {
  LogSumExp sum;
  for (int i = lane_index(); i < count; i += kWarpSize) sum.merge({pairs[i].x, pairs[i].y});
  sum.merge_warp();
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kRowMassThreads, 1)
    row_mass_kernel(const __grid_constant__ Heads heads, const __grid_constant__ RowMassPlan plan,
                    InverseTemperature scale, int64_t n_valid, const float* prototype, float* row,
                    float* partial_mass) {
  const int threads = blockDim.x, warps = threads / kWarpSize;
  auto* potential = reinterpret_cast<float4*>(shared_memory());
  auto* stages = reinterpret_cast<uint4*>(potential + threads * (kRowColumns / 4));
  auto* pairs = reinterpret_cast<float2*>(stages + threads * (kStageBytesPerThread / kPackBytes));

  const int cluster = blockIdx.x / plan.cluster;
  int h = heads.n_heads - 1;
  while (plan.first_cluster[h] > cluster) --h;
  const int team_size = plan.team[h], groups = plan.groups[h];
  const int team = cluster_rank() / team_size, member = cluster_rank() % team_size;
  const int group = (cluster - plan.first_cluster[h]) * (plan.cluster / team_size) + team;
  const HeadView& head = heads.head[h];
  const RowPart<T> part{head, static_cast<int64_t>(member) * threads * kRowColumns, threads};
  constexpr int kPacks = RowPart<T>::kPacks;

  // A thread reads only the potentials that it wrote, so no barrier follows.
  auto* own = reinterpret_cast<float*>(potential);
#pragma unroll
  for (int i = 0; i < kRowColumns; ++i) {
    const int64_t k = part.column(i / kPack<T>) + i % kPack<T>;
    own[((i / 4) * threads + threadIdx.x) * 4 + i % 4] =
        k < head.columns ? prototype[head.first_column + k] : -kInfinity;
  }
#pragma unroll
  for (int s = 0; s < kStages<T> - 1; ++s) {
    part.fetch(stages + s * kPacks * threads, group + static_cast<int64_t>(s) * groups, n_valid);
  }
  // No block may store to a peer that has not started.
  cluster_barrier();

  float mass[kRowColumns] = {};
  const int64_t n_steps = (n_valid + groups - 1) / groups;
  for (int64_t step = 0; step < n_steps; ++step) {
    const int64_t n = group + step * groups;
    float2* exchange = pairs + (step % 2) * plan.cluster * warps;
    float e[kRowColumns];
    wait_for_copies<kStages<T> - 2>();
    part.exponents(e, stages + (step % kStages<T>)*kPacks * threads, potential, scale);
    const LogSumExp own_sum = exponentiate(e);
    if (lane_index() < team_size) {
      store_to_peer(exchange + member * warps + warp_index(), team * team_size + lane_index(),
                    make_float2(own_sum.maximum, own_sum.total));
    }
    const int64_t ahead = step + kStages<T> - 1;
    part.fetch(stages + (ahead % kStages<T>)*kPacks * threads, group + ahead * groups, n_valid);
    // One barrier for each row: the exchange is double buffered, and nobody writes a buffer again
    // before all have passed the next barrier.
    cluster_barrier();
    const LogSumExp sum = merge_team(exchange, team_size * warps);
    const float factor =
        n < n_valid ? fast_exp(own_sum.maximum - LogSumExp::shift(sum.maximum)) / sum.total : 0.0f;
#pragma unroll
    for (int i = 0; i < kRowColumns; ++i) mass[i] = fmaf(e[i], factor, mass[i]);
    if (member == 0 && threadIdx.x == 0 && n < n_valid) {
      row[h * heads.n_rows + n] = -(sum.maximum + logf(sum.total));
    }
  }
  wait_for_copies<0>();

  float* to = partial_mass + group * heads.n_columns + head.first_column;
#pragma unroll
  for (int i = 0; i < kRowColumns; ++i) {
    const int64_t k = part.column(i / kPack<T>) + i % kPack<T>;
    if (k < head.columns) to[k] = mass[i];
  }
  if (member != 0) return;
  for (int64_t n = n_valid + group * threads + threadIdx.x; n < heads.n_rows;
       n += static_cast<int64_t>(groups) * threads) {
    row[h * heads.n_rows + n] = -kInfinity;
  }
}

}  // namespace franca::cuda
