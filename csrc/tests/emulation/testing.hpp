// What the tests of emulated kernels share: guarded device memory, random logits, comparisons.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/primitives/numbers.cuh"
#include "franca/views.hpp"

namespace franca::testing {

// Reports a failure and ends the process: the first one makes a test red.
[[noreturn]] void fail(const std::string& message);

// What is being tested now, for the message of a failure.
void set_context(const std::string& context);

// Memory as a kernel sees it: filled with NaN bits, with a page behind it that cannot be touched
// and one before. `slack` bytes between its end and that page hold a pattern that must survive.
// Memory of a GiB or more, for rows too far apart for indices of 32 bits, is neither filled nor
// checked, so that only the pages in use exist.
class GuardedMemory {
 public:
  // The memory starts at a multiple of 16 bytes, or `misalign` bytes after one.
  explicit GuardedMemory(std::size_t bytes, std::size_t misalign = 0);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  void* data() const { return data_; }
  void poison();
  void check_surroundings() const;

 private:
  unsigned char* pages_ = nullptr;
  std::size_t page_bytes_ = 0;
  unsigned char* data_ = nullptr;
  std::size_t bytes_ = 0;
  bool sparse_ = false;
};

// Elements between rows such that the third row starts beyond 2^31 bytes.
constexpr int64_t kFarApart = int64_t{1} << 29;

template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count, std::size_t misalign = 0)
      : memory_(static_cast<std::size_t>(count) * sizeof(T), misalign), count_(count) {}
  Guarded(const std::vector<T>& values) : Guarded(static_cast<int64_t>(values.size())) {
    if (!values.empty()) std::memcpy(memory_.data(), values.data(), values.size() * sizeof(T));
  }

  T* data() const { return static_cast<T*>(memory_.data()); }
  T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return count_; }
  std::vector<T> values() const {
    memory_.check_surroundings();
    return std::vector<T>(data(), data() + count_);
  }
  void poison() { memory_.poison(); }

 private:
  GuardedMemory memory_;
  int64_t count_;
};

// Rounds to the type and back.
double rounded(double value, DType dtype);
void store(void* to, int64_t index, double value, DType dtype);
double fetch(const void* from, int64_t index, DType dtype);

// Matrices of several heads, in guarded memory and as doubles.
struct RaggedCase {
  std::vector<int64_t> columns;
  int64_t n_rows = 0;
  DType dtype = DType::float32;
  int64_t row_padding = 0;   // elements between rows
  std::size_t misalign = 0;  // bytes
  double spread = 1.0;       // entries are uniform in [-spread, spread]

  std::string name() const;
};

class RaggedMatrices {
 public:
  RaggedMatrices(const RaggedCase& shape, uint64_t seed);

  RaggedLogits view() const;
  double at(int64_t head, int64_t n, int64_t k) const {
    return values_[head][n * shape_.columns[head] + k];
  }
  void set(int64_t head, int64_t n, int64_t k, double value);
  const RaggedCase& shape() const { return shape_; }
  int64_t first_column(int64_t head) const { return first_[head]; }
  int64_t total_columns() const { return first_.back(); }
  int64_t n_heads() const { return static_cast<int64_t>(shape_.columns.size()); }
  void check_surroundings() const;

 private:
  int64_t stride(int64_t head) const { return shape_.columns[head] + shape_.row_padding; }

  RaggedCase shape_;
  std::vector<std::vector<double>> values_;
  std::vector<int64_t> first_;
  std::vector<GuardedMemory*> memory_;  // kept until the process ends
  std::vector<Head> heads_;
};

// |value - expected| <= absolute + relative |expected|; NaN fails, equal infinities pass.
void expect_close(const char* what, const std::vector<float>& values,
                  const std::vector<double>& expected, double relative, double absolute);

// The same bits.
template <class T>
void expect_same(const char* what, const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) != 0) {
    fail(std::string(what) + " differs between two runs");
  }
}

}  // namespace franca::testing
