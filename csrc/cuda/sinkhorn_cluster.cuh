// The row half-step with its masses in one read of the logits.
//
// A team of blocks holds a row on chip: each block its part of the columns, each thread 32 of them.
// The thread computes e = exp(z/T + a + guess of the row potential) once, the team adds up what its
// warps have through distributed shared memory, and e times a factor of the row is what the thread
// adds to the masses of its columns, which stay in registers for all rows of the team.
//
// The guess is the row potential of the iteration before, or 0 in the first one, where no exponent
// is above 0. Prototype potentials move little between iterations, so the sums stay in the range of
// floats and no maximum is needed; a row whose sum leaves it is done again with its maximum.
//
// All blocks of a launch form clusters of one size. A cluster serves one head at a time; where that
// head needs fewer blocks, the cluster holds several teams with different rows. The steps of all
// heads are numbered through, and every cluster takes an equal share of them.
#pragma once

#include "cuda/merges.cuh"
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
  int n_clusters;                 // 0: this device cannot hold a row on chip
  int team[kMaxHeads];            // blocks that share a row
  int64_t first_step[kMaxHeads];  // a step is one row for each team of a cluster
  int64_t n_steps;                // of all heads

  __host__ __device__ int teams(int h) const { return cluster / team[h]; }
  // First step of a cluster.
  __host__ __device__ int64_t begin(int64_t index) const { return index * n_steps / n_clusters; }
  // The first cluster that meets a step.
  __host__ __device__ int cluster_of(int64_t step) const {
    return static_cast<int>(((step + 1) * n_clusters - 1) / n_steps);
  }
};

constexpr std::size_t row_mass_shared_bytes(int threads) {
  constexpr std::size_t kPotentials = kRowColumns * sizeof(float);
  const std::size_t slots = 2 * kLargestCluster * static_cast<std::size_t>(threads / kWarpSize);
  return static_cast<std::size_t>(threads) * (kPotentials + kStageBytesPerThread) +
         2 * sizeof(ArrivalBarrier) + slots * sizeof(float);
}

// A thread's part of the rows of a team, which takes every `stride`-th row from `next` on. Pack j
// of the thread holds columns (j * threads + thread) * kPack of the block.
template <class T, int threads>
struct RowPart {
  static constexpr int kPacks = kRowColumns / kPack<T>;
  static constexpr int kBetween = threads * kPack<T>;  // columns from a pack to the next one
  const char* from;                                    // this thread's first pack of row `next`
  int left;  // columns of the head from the thread's first one on, negative beyond the last
  bool vectors;
  int next, stride, n_valid;

  __device__ __forceinline__ RowPart(const HeadView& head, int member, int first, int rows_apart,
                                     int n_rows)
      : vectors(head.vectors), next(first), stride(rows_apart), n_valid(n_rows) {
    const int64_t column = static_cast<int64_t>(member) * threads * kRowColumns +
                           static_cast<int64_t>(threadIdx.x) * kPack<T>;
    left = static_cast<int>(head.columns - column);
    from = head.data + first * head.row_bytes + (left > 0 ? column : 0) * sizeof(T);
  }

  // Starts the copy of row `next` to this thread's packs of a stage; rows that are padding, and
  // columns that do not exist, become zeros.
  __device__ __forceinline__ void fetch(const HeadView& head, uint4* stage) {
    const int exist = next < n_valid ? left : 0;
    const bool all = vectors && exist >= (kPacks - 1) * kBetween + kPack<T>;
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      uint4* to = stage + j * threads + threadIdx.x;
      const T* pack = reinterpret_cast<const T*>(from) + j * kBetween;
      if (all) {
        copy_async(to, pack, kPackBytes);
        continue;
      }
      const int count = exist - j * kBetween;
      if (vectors) {
        const int bytes = count >= kPack<T> ? kPackBytes : count * static_cast<int>(sizeof(T));
        copy_async(to, bytes > 0 ? pack : static_cast<const void*>(from), bytes > 0 ? bytes : 0);
      } else {
        *to = load_pack(pack, count, false);
      }
    }
    commit_copies();
    next += stride;
    if (next < n_valid) from += stride * head.row_bytes;
  }

  // -inf beyond the head's last column. A thread reads only what it wrote.
  __device__ __forceinline__ void load_potentials(float4* potential, const float* first) const {
    auto* own = reinterpret_cast<float*>(potential);
#pragma unroll
    for (int i = 0; i < kRowColumns; ++i) {
      const int column = i / kPack<T> * kBetween + i % kPack<T>;
      own[((i / 4) * threads + threadIdx.x) * 4 + i % 4] =
          column < left ? first[column] : -kInfinity;
    }
  }

  __device__ __forceinline__ void store_mass(float* first, const float (&mass)[kRowColumns]) const {
#pragma unroll
    for (int i = 0; i < kRowColumns; ++i) {
      const int column = i / kPack<T> * kBetween + i % kPack<T>;
      if (column < left) first[column] = mass[i];
    }
  }

  // x = z/T + a + shift of this thread's columns.
  __device__ __forceinline__ void exponents(float (&x)[kRowColumns], const uint4* stage,
                                            const float4* potential, InverseTemperature scale,
                                            float shift) const {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      float z[kPack<T>];
      unpack(z, stage[j * threads + threadIdx.x], static_cast<const T*>(nullptr));
#pragma unroll
      for (int q = 0; q < kPack<T> / 4; ++q) {
        const float4 a = potential[(j * (kPack<T> / 4) + q) * threads + threadIdx.x];
        float* to = x + j * kPack<T> + 4 * q;
        to[0] = exponent_of<T>(z[4 * q], scale, a.x, shift);
        to[1] = exponent_of<T>(z[4 * q + 1], scale, a.y, shift);
        to[2] = exponent_of<T>(z[4 * q + 2], scale, a.z, shift);
        to[3] = exponent_of<T>(z[4 * q + 3], scale, a.w, shift);
      }
    }
  }
};

// Replaces x by exp(x) and returns the warp's sum.
__device__ __forceinline__ float exponentiate(float (&x)[kRowColumns]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowColumns; ++i) {
    x[i] = fast_exp(x[i]);
    sum += x[i];
  }
  return warp_sum(sum);
}

// What the warps of a team tell each other: one value of each, at a time.
//
// A value may be sent while a warp still reads those of the exchange before, so there are two
// buffers. Nobody gets two exchanges ahead, because an exchange ends when all warps have sent.
template <int warps>
struct TeamExchange {
  ArrivalBarrier* barriers;
  float* slots;
  int team_size = 1, first_rank = 0, member = 0;
  unsigned count = 0;

  // A team of `size` neighbouring blocks begins, and ends, together with all teams of the cluster:
  // nobody may send to a block that is not ready, or that counts for another team.
  __device__ __forceinline__ void begin(int size) {
    team_size = size;
    member = static_cast<int>(cluster_rank()) % size;
    first_rank = static_cast<int>(cluster_rank()) - member;
    count = 0;
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) init_arrivals(barriers + i);
    }
    cluster_barrier();
  }

  __device__ __forceinline__ void end() {
    cluster_barrier();
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) end_arrivals(barriers + i);
    }
  }

  // Calls take(value) for the values of the lane; all lanes together get all warps of the team.
  template <class Take>
  __device__ __forceinline__ void run(float own, const Take& take) {
    const int size = team_size * warps;
    float* buffer = slots + count % 2 * (kLargestCluster * warps);
    ArrivalBarrier* barrier = barriers + count % 2;
    if (threadIdx.x == 0) expect_arrivals(barrier, size * sizeof(float));
    if (lane_index() < team_size) {
      send_to_peer(buffer + member * warps + warp_index(), barrier, first_rank + lane_index(), own);
    }
    wait_for_arrivals(barrier, count / 2);
#pragma unroll
    for (int i = 0; i < kLargestCluster * warps; i += kWarpSize) {
      if (i + lane_index() < size) take(buffer[i + lane_index()]);
    }
    ++count;
  }

  __device__ __forceinline__ float sum(float own) {
    float total = 0.0f;
    run(own, [&](float value) { total += value; });
    return warp_sum(total);
  }

  __device__ __forceinline__ float maximum(float own) {
    float largest = -kInfinity;
    run(own, [&](float value) { largest = fmaxf(largest, value); });
    return warp_maximum(largest);
  }
};

// The row potential, and what exp(x + shift) is to be multiplied by.
struct RowResult {
  float potential;
  float factor;
};

// e = exp(z/T + a + shift) of the row in `stage`.
template <class T, int threads>
__device__ __forceinline__ RowResult normalise_row(float (&e)[kRowColumns],
                                                   TeamExchange<threads / kWarpSize>& exchange,
                                                   const RowPart<T, threads>& part,
                                                   const uint4* stage, const float4* potential,
                                                   InverseTemperature scale, float guess) {
  float shift = guess, total;
  for (bool again = false;; again = true) {
    part.exponents(e, stage, potential, scale, shift);
    total = exchange.sum(exponentiate(e));
    // The same decision in all threads of the team.
    if (again || (total >= kSmallestSum && total <= kLargestSum)) break;
    part.exponents(e, stage, potential, scale, 0.0f);
    float largest = e[0];
#pragma unroll
    for (int i = 1; i < kRowColumns; ++i) largest = fmaxf(largest, e[i]);
    shift = -LogSumExp::shift(exchange.maximum(warp_maximum(largest)));
  }
  return {shift - logf(total), 1.0f / total};
}

struct RowMassParameters {
  Heads heads;
  RowMassPlan plan;
  MassParts parts;
  InverseTemperature scale;
  int n_valid;
  const float* prototype;
  const float* guess;  // null: 0
  float* row;
  float* mass;
};

// The steps [begin, begin + n_steps) of a head.
template <class T, int threads>
__device__ __forceinline__ void row_mass_steps(const RowMassParameters& p, int h, int cluster,
                                               int begin, int n_steps,
                                               TeamExchange<threads / kWarpSize>& exchange,
                                               float4* potential, uint4* stages) {
  constexpr int kStagePacks = RowPart<T, threads>::kPacks * threads;
  const int teams = p.plan.teams(h), team = cluster_rank() / p.plan.team[h];
  exchange.begin(p.plan.team[h]);
  const HeadView& head = p.heads.head[h];
  int n = begin * teams + team;
  RowPart<T, threads> part(head, exchange.member, n, teams, p.n_valid);
  float* row = p.row + h * p.heads.n_rows;
  const float* guess = p.guess == nullptr ? nullptr : p.guess + h * p.heads.n_rows;
  const auto guess_of = [&](int m) { return guess != nullptr && m < p.n_valid ? guess[m] : 0.0f; };
  const int first_column = exchange.member * threads * kRowColumns + threadIdx.x * kPack<T>;
  part.load_potentials(potential, p.prototype + head.first_column + first_column);
#pragma unroll
  for (int s = 0; s < kStages<T> - 1; ++s) part.fetch(head, stages + s * kStagePacks);
  float mass[kRowColumns] = {};
  float next_guess = guess_of(n);
  for (int i = 0; i < n_steps; ++i, n += teams) {
    const float own_guess = next_guess;
    next_guess = guess_of(n + teams);
    wait_for_copies<kStages<T> - 2>();
    part.fetch(head, stages + (i + kStages<T> - 1) % kStages<T> * kStagePacks);
    float e[kRowColumns];
    const RowResult result = normalise_row(e, exchange, part, stages + i % kStages<T> * kStagePacks,
                                           potential, p.scale, own_guess);
    const float factor = n < p.n_valid ? result.factor : 0.0f;
#pragma unroll
    for (int c = 0; c < kRowColumns; ++c) mass[c] = fmaf(e[c], factor, mass[c]);
    if (exchange.member == 0 && threadIdx.x == 0 && n < p.n_valid) {
      row[n] = result.potential;
    }
  }
  wait_for_copies<0>();
  exchange.end();
  const int group = (cluster - p.plan.cluster_of(p.plan.first_step[h])) * teams + team;
  part.store_mass(p.mass + p.parts.first[h] + group * p.parts.stride[h] + first_column, mass);
}

template <class T, int threads>
__global__ void __launch_bounds__(threads, kRowMassThreads / threads)
    row_mass_kernel(const __grid_constant__ RowMassParameters p) {
  auto* potential = reinterpret_cast<float4*>(shared_memory());
  auto* stages = reinterpret_cast<uint4*>(potential + threads * (kRowColumns / 4));
  auto* barriers =
      reinterpret_cast<ArrivalBarrier*>(stages + threads * (kStageBytesPerThread / kPackBytes));

  const int cluster = blockIdx.x / p.plan.cluster;
  TeamExchange<threads / kWarpSize> exchange{barriers, reinterpret_cast<float*>(barriers + 2)};
  int step = static_cast<int>(p.plan.begin(cluster));
  const int end = static_cast<int>(p.plan.begin(cluster + 1));
  while (step < end) {
    int h = p.heads.n_heads - 1;
    while (p.plan.first_step[h] > step) --h;
    const int64_t head_end = h + 1 < p.heads.n_heads ? p.plan.first_step[h + 1] : p.plan.n_steps;
    const int n_steps = static_cast<int>(smaller(end, head_end)) - step;
    row_mass_steps<T, threads>(p, h, cluster, step - static_cast<int>(p.plan.first_step[h]),
                               n_steps, exchange, potential, stages);
    step += n_steps;
  }
  const int64_t padding = p.heads.n_rows - p.n_valid;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
       i < p.heads.n_heads * padding; i += static_cast<int64_t>(gridDim.x) * threads) {
    p.row[i / padding * p.heads.n_rows + p.n_valid + i % padding] = -kInfinity;
  }
}

}  // namespace franca::cuda
