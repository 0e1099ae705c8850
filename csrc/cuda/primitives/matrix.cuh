// Tensor core tiles: m16n8k16 with 16-bit factors and float accumulators (sm_80 and later).
//
// With group = lane / 4 and pair = lane % 4 a lane holds, of a 16x8 accumulator, the columns
// 2 pair and 2 pair + 1 of row `group` in [0] and [1], and of row `group` + 8 in [2] and [3].
#pragma once

#include "cuda/primitives/memory.cuh"

namespace franca::cuda {

// 16x16 factor, or two neighbouring 8x16 factors of which [0] and [1] are the first.
struct Fragment {
  uint32_t word[4];
};

#if defined(FRANCA_EMULATION)

// Loads four 8x8 matrices: lane 8 i + r gives the address of row r of matrix i, and lane l gets the
// elements 2 (l % 4) and the next of row l / 4 of each.
inline Fragment load_fragment(SharedAddress address) {
  const auto* row = reinterpret_cast<const void*>(address);
  emulation::check_aligned(row, 16);
  const auto* slots = emulation::exchange(&row, sizeof(row));
  Fragment fragment;
  for (int i = 0; i < 4; ++i) {
    const unsigned char* from;
    std::memcpy(&from, slots[8 * i + lane_index() / 4], sizeof(from));
    std::memcpy(&fragment.word[i], from + 4 * (lane_index() % 4), 4);
  }
  return fragment;
}

// As load_fragment, each matrix transposed: lane l gets the elements of column l / 4 in the rows
// 2 (l % 4) and the next.
inline Fragment load_fragment_transposed(SharedAddress address) {
  const auto* row = reinterpret_cast<const void*>(address);
  emulation::check_aligned(row, 16);
  const auto* slots = emulation::exchange(&row, sizeof(row));
  Fragment fragment{};
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 2; ++k) {
      const unsigned char* from;
      uint16_t value;
      std::memcpy(&from, slots[8 * i + 2 * (lane_index() % 4) + k], sizeof(from));
      std::memcpy(&value, from + 2 * (lane_index() / 4), sizeof(value));
      fragment.word[i] |= static_cast<uint32_t>(value) << (16 * k);
    }
  }
  return fragment;
}

// c += a b^T
template <class T>
inline void multiply_add(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  constexpr int kOfA = 8, kOfB = 4;
  const uint32_t words[6] = {a.word[0], a.word[1], a.word[2], a.word[3], b0, b1};
  float own[kOfA + kOfB];
  for (int i = 0; i < kOfA + kOfB; ++i) {
    own[i] = to_float(T{static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)))});
  }
  const auto* slots = emulation::exchange(own, sizeof(own));
  const int group = lane_index() / 4, pair = lane_index() % 4;
  for (int p = 0; p < 4; ++p) {
    float from_a[kOfA], from_b[2][kOfB];
    std::memcpy(from_a, slots[4 * group + p], sizeof(from_a));
    for (int column = 0; column < 2; ++column) {
      std::memcpy(from_b[column], slots[4 * (2 * pair + column) + p] + sizeof(from_a),
                  sizeof(from_b[column]));
    }
    for (int half = 0; half < 2; ++half) {  // rows group and group + 8
      for (int column = 0; column < 2; ++column) {
        for (int k = 0; k < 4; ++k) {  // elements 2 p, 2 p + 1, and those 8 further on
          c[2 * half + column] += from_a[2 * (half + 2 * (k / 2)) + k % 2] * from_b[column][k];
        }
      }
    }
  }
}

#else

__device__ __forceinline__ Fragment load_fragment(SharedAddress address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.word[0]), "=r"(f.word[1]), "=r"(f.word[2]), "=r"(f.word[3])
               : "r"(address)
               : "memory");
  return f;
}

__device__ __forceinline__ Fragment load_fragment_transposed(SharedAddress address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.word[0]), "=r"(f.word[1]), "=r"(f.word[2]), "=r"(f.word[3])
               : "r"(address)
               : "memory");
  return f;
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const Fragment& a, uint32_t b0,
                                             uint32_t b1, const BFloat16*) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const Fragment& a, uint32_t b0,
                                             uint32_t b1, const Float16*) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const Fragment& a, uint32_t b0,
                                             uint32_t b1) {
  multiply_add(c, a, b0, b1, static_cast<const T*>(nullptr));
}

#endif

__device__ __forceinline__ Fragment load_fragment(const void* row) {
  return load_fragment(shared_address(row));
}

}  // namespace franca::cuda
