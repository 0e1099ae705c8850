#include "testing.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>

namespace franca::testing {
namespace {

constexpr unsigned char kPattern = 0xa5;
std::string the_context;

std::size_t page_size() {
  return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

void fail(const std::string& message) {
  std::fprintf(stderr, "FAILED [%s] %s\n", the_context.c_str(), message.c_str());
  std::fflush(stderr);
  std::_Exit(1);
}

void set_context(const std::string& context) {
  the_context = context;
}

GuardedMemory::GuardedMemory(std::size_t bytes, std::size_t misalign) : bytes_(bytes) {
  constexpr std::size_t kAlignment = 16, kSparse = std::size_t{1} << 30;
  sparse_ = bytes >= kSparse;
  const std::size_t page = page_size();
  const std::size_t inner = (bytes + 2 * kAlignment + page - 1) / page * page;
  page_bytes_ = inner + 2 * page;
  void* pages = mmap(nullptr, page_bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | (sparse_ ? MAP_NORESERVE : 0), -1, 0);
  if (pages == MAP_FAILED) fail("no memory");
  pages_ = static_cast<unsigned char*>(pages);
  if (!sparse_) std::memset(pages_ + page, kPattern, inner);
  mprotect(pages_, page, PROT_NONE);
  mprotect(pages_ + page + inner, page, PROT_NONE);
  const std::size_t room = inner - bytes - misalign;
  data_ = pages_ + page + room / kAlignment * kAlignment + misalign;
  poison();
}

GuardedMemory::~GuardedMemory() {
  check_surroundings();
  munmap(pages_, page_bytes_);
}

void GuardedMemory::poison() {
  if (sparse_) return;
  std::memset(data_, 0xff, bytes_);
}

void GuardedMemory::check_surroundings() const {
  if (sparse_) return;
  const std::size_t page = page_size();
  for (const unsigned char* p = pages_ + page; p < pages_ + page_bytes_ - page; ++p) {
    if (p == data_) p += bytes_;
    if (p < pages_ + page_bytes_ - page && *p != kPattern)
      fail("memory outside a view was written");
  }
}

double rounded(double value, DType dtype) {
  alignas(4) unsigned char memory[4];
  store(memory, 0, value, dtype);
  return fetch(memory, 0, dtype);
}

void store(void* to, int64_t index, double value, DType dtype) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case DType::float32:
      static_cast<float*>(to)[index] = single;
      return;
    case DType::bfloat16:
      return cuda::assign(static_cast<cuda::BFloat16*>(to)[index], single);
    case DType::float16:
      return cuda::assign(static_cast<cuda::Float16*>(to)[index], single);
  }
}

double fetch(const void* from, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::float32:
      return static_cast<const float*>(from)[index];
    case DType::bfloat16:
      return cuda::to_float(static_cast<const cuda::BFloat16*>(from)[index]);
    default:
      return cuda::to_float(static_cast<const cuda::Float16*>(from)[index]);
  }
}

std::string RaggedCase::name() const {
  std::string text = "columns";
  for (int64_t k : columns) text += " " + std::to_string(k);
  return text + ", rows " + std::to_string(n_rows) + ", dtype " +
         std::to_string(static_cast<int>(dtype)) + ", padding " + std::to_string(row_padding) +
         ", misaligned by " + std::to_string(misalign);
}

RaggedMatrices::RaggedMatrices(const RaggedCase& shape, uint64_t seed) : shape_(shape), first_{0} {
  std::mt19937_64 generator(seed);
  std::uniform_real_distribution<double> uniform(-shape.spread, shape.spread);
  for (int64_t h = 0; h < n_heads(); ++h) {
    const int64_t columns = shape.columns[h];
    first_.push_back(first_.back() + columns);
    values_.emplace_back(shape.n_rows * columns);
    const auto bytes = static_cast<std::size_t>(shape.n_rows * stride(h) * size_of(shape.dtype));
    memory_.push_back(new GuardedMemory(bytes, shape.misalign));
    heads_.push_back({memory_.back()->data(), columns, stride(h)});
    for (int64_t n = 0; n < shape.n_rows; ++n) {
      for (int64_t k = 0; k < columns; ++k) set(h, n, k, uniform(generator));
    }
  }
}

RaggedLogits RaggedMatrices::view() const {
  return {heads_.data(), n_heads(), shape_.n_rows, shape_.dtype};
}

void RaggedMatrices::set(int64_t head, int64_t n, int64_t k, double value) {
  store(heads_[head].data, n * stride(head) + k, value, shape_.dtype);
  values_[head][n * shape_.columns[head] + k] = rounded(value, shape_.dtype);
}

void RaggedMatrices::check_surroundings() const {
  for (const GuardedMemory* memory : memory_) memory->check_surroundings();
}

void expect_close(const char* what, const std::vector<float>& values,
                  const std::vector<double>& expected, double relative, double absolute) {
  if (values.size() != expected.size()) fail(std::string(what) + ": size");
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double value = values[i], target = expected[i];
    if (value == target) continue;
    if (!(std::fabs(value - target) <= absolute + relative * std::fabs(target))) {
      fail(std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(value) +
           ", expected " + std::to_string(target));
    }
  }
}

}  // namespace franca::testing
