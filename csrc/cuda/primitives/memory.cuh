// Vector access to global memory in packs of 16 bytes, and asynchronous copies to shared memory.
#pragma once

#include "cuda/primitives/numbers.cuh"

namespace franca::cuda {

constexpr int kPackBytes = 16;

// Elements of one pack.
template <class T>
constexpr int kPack = kPackBytes / static_cast<int>(sizeof(T));

#if defined(FRANCA_EMULATION)

// An address in shared memory, for arithmetic.
using SharedAddress = std::uintptr_t;

inline SharedAddress shared_address(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

inline uint4 load_vector(const void* address) {
  emulation::check_aligned(address, kPackBytes);
  uint4 value;
  std::memcpy(&value, address, sizeof(value));
  return value;
}

inline uint4 load_vector_read_only(const void* address) {
  return load_vector(address);
}

inline void store_vector(void* address, uint4 value) {
  emulation::check_aligned(address, kPackBytes);
  std::memcpy(address, &value, sizeof(value));
}

// Copies `bytes` <= 16 and fills up to 16 with zeros. Both addresses must be multiples of 16.
inline void copy_async(void* shared, const void* global, int bytes) {
  emulation::check_aligned(shared, kPackBytes);
  if (bytes > 0) emulation::check_aligned(global, kPackBytes);
  emulation::async_copy({shared, global, static_cast<std::size_t>(bytes),
                         static_cast<std::size_t>(kPackBytes - bytes)});
}

// Copies 16 bytes.
inline void copy_async(void* shared, const void* global) {
  copy_async(shared, global, kPackBytes);
}

// An ordinary store to shared memory of what a tensor core may read.
inline void store_shared(uint4* shared, uint4 value) {
  emulation::store_shared(shared, &value, sizeof(value));
}

// Ends a group of copies of this thread.
inline void commit_copies() {
  emulation::async_commit();
}

// Waits for this thread's groups but the last `left`. Other threads see them after a barrier.
template <int left>
inline void wait_for_copies() {
  emulation::async_wait(left);
}

#else

using SharedAddress = uint32_t;

__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ uint4 load_vector(const void* address) {
  return *static_cast<const uint4*>(address);
}

// For memory that nobody writes while the kernel runs.
__device__ __forceinline__ uint4 load_vector_read_only(const void* address) {
  return __ldg(static_cast<const uint4*>(address));
}

__device__ __forceinline__ void store_vector(void* address, uint4 value) {
  *static_cast<uint4*>(address) = value;
}

__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
}

__device__ __forceinline__ void store_shared(uint4* shared, uint4 value) {
  *shared = value;
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int left>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

#endif

// For a number of groups that is known at run time; more than 2 wait as for 2.
__device__ __forceinline__ void wait_for_copies(int left) {
  if (left >= 2) {
    wait_for_copies<2>();
  } else if (left == 1) {
    wait_for_copies<1>();
  } else {
    wait_for_copies<0>();
  }
}

__device__ __forceinline__ void unpack(float (&values)[4], uint4 pack, const float*) {
  values[0] = float_of_bits(pack.x);
  values[1] = float_of_bits(pack.y);
  values[2] = float_of_bits(pack.z);
  values[3] = float_of_bits(pack.w);
}

__device__ __forceinline__ void unpack_pair(float* values, uint32_t word, const BFloat16*) {
  values[0] = float_of_bits(word << 16);
  values[1] = float_of_bits(word & 0xffff0000u);
}

__device__ __forceinline__ void unpack_pair(float* values, uint32_t word, const Float16*) {
  values[0] = half_to_float(static_cast<uint16_t>(word & 0xffffu));
  values[1] = half_to_float(static_cast<uint16_t>(word >> 16));
}

template <class T>
__device__ __forceinline__ void unpack(float (&values)[8], uint4 pack, const T* type) {
  unpack_pair(values, pack.x, type);
  unpack_pair(values + 2, pack.y, type);
  unpack_pair(values + 4, pack.z, type);
  unpack_pair(values + 6, pack.w, type);
}

__device__ __forceinline__ uint4 make_pack(const float (&values)[4], const float*) {
  return make_uint4(bits_of_float(values[0]), bits_of_float(values[1]), bits_of_float(values[2]),
                    bits_of_float(values[3]));
}

template <class T>
__device__ __forceinline__ uint32_t make_pair(float low, float high) {
  return pair_from_floats(low, high, static_cast<const T*>(nullptr));
}

template <class T>
__device__ __forceinline__ uint4 make_pack(const float (&values)[8], const T*) {
  return make_uint4(make_pair<T>(values[0], values[1]), make_pair<T>(values[2], values[3]),
                    make_pair<T>(values[4], values[5]), make_pair<T>(values[6], values[7]));
}

}  // namespace franca::cuda
