#include "warpgroup.hpp"

#include <cstring>

#include "fibers.hpp"

namespace franca::emulation {

// What a thread has in flight.
struct WarpgroupProducts {
  struct Accumulators {
    float* visible;  // poisoned as long as products are in flight
    float value[kWarpgroupAccumulators];
    int in_flight;
  };
  struct Issued {
    WarpgroupProduct product;
    bool done;
    float result[kWarpgroupAccumulators];
  };

  std::vector<Accumulators> accumulators;
  std::vector<Issued> open_group;
  std::deque<std::vector<Issued>> groups;
  bool fenced = false;

  Accumulators& of(const float* visible) {
    for (Accumulators& a : accumulators) {
      if (a.visible == visible) return a;
    }
    fail("accumulators of a product that is not in flight");
  }
};

namespace {

constexpr uint32_t kPoison = 0xffffffffu;
constexpr int kDepth = 16;
constexpr unsigned kFullSwizzle = 1;  // by 128 bytes

WarpgroupProducts& products() {
  Fiber& fiber = current();
  if (fiber.products == nullptr) fiber.products = std::make_shared<WarpgroupProducts>();
  return *fiber.products;
}

std::vector<unsigned char>& seen_by_tensor_cores() {
  Block& block = *current().block;
  if (block.async_shared.empty()) block.async_shared.assign(current_shape().shared_bytes, 0xff);
  return block.async_shared;
}

// The 16 elements of a row of a factor.
void load_row(float (&row)[kDepth], uint64_t descriptor, int index, float (*to_float)(uint16_t)) {
  const auto begin = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const auto group_bytes = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const std::vector<unsigned char>& memory = seen_by_tensor_cores();
  for (int pack = 0; pack < 2; ++pack) {
    const uint32_t plain = begin + index / 8 * group_bytes + index % 8 * 128 + 16 * pack;
    const uint32_t address = plain ^ (plain >> 3 & 0x70);
    if (address + 16 > memory.size()) fail("a descriptor reaches beyond shared memory");
    uint16_t bits[8];
    std::memcpy(bits, memory.data() + address, sizeof(bits));
    for (int i = 0; i < 8; ++i) row[8 * pack + i] = to_float(bits[i]);
  }
}

// Warp w of the group has the rows 16 w to 16 w + 15; lanes hold them as with mma.sync.
void multiply(const WarpgroupProduct& p, float* value) {
  const int lane = current().lane, warp = static_cast<int>(current().thread.x) / kWarpSize % 4;
  float a[2][kDepth], b[kDepth];
  for (int half = 0; half < 2; ++half) {
    load_row(a[half], p.a, 16 * warp + lane / 4 + 8 * half, p.to_float);
  }
  for (int tile = 0; tile < kWarpgroupColumns / 8; ++tile) {
    for (int column = 0; column < 2; ++column) {
      load_row(b, p.b, 8 * tile + lane % 4 * 2 + column, p.to_float);
      for (int half = 0; half < 2; ++half) {
        float sum = 0.0f;
        for (int k = 0; k < kDepth; ++k) sum += a[half][k] * b[k];
        value[4 * tile + 2 * half + column] = sum;
      }
    }
  }
}

void check_descriptor(uint64_t descriptor) {
  if (descriptor >> 62 != kFullSwizzle) fail("a descriptor of another layout");
  if ((descriptor >> 49 & 7) != 0) fail("a descriptor with a base offset");
  // Factors begin where the pattern of the swizzle does; steps of 32 bytes lead along their rows.
  if ((descriptor & 0x3fff) % (1024 >> 4) >= 128 >> 4) fail("a factor begins within a pattern");
}

void finish(WarpgroupProducts& own, WarpgroupProducts::Issued& issued) {
  WarpgroupProducts::Accumulators& sums = own.of(issued.product.accumulators);
  if (!issued.done) multiply(issued.product, issued.result);
  // In the order in which they were issued, so that sums are the same whenever they were formed.
  for (int i = 0; i < kWarpgroupAccumulators; ++i) sums.value[i] += issued.result[i];
  if (--sums.in_flight > 0) return;
  for (int i = 0; i < kWarpgroupAccumulators; ++i) {
    uint32_t bits;
    std::memcpy(&bits, sums.visible + i, sizeof(bits));
    if (bits != kPoison) fail("accumulators were written while a product was in flight");
  }
  std::memcpy(sums.visible, sums.value, sizeof(sums.value));
  own.accumulators.erase(own.accumulators.begin() + (&sums - own.accumulators.data()));
}

}  // namespace

void warpgroup_multiply(const WarpgroupProduct& product) {
  const uint64_t factors[2] = {product.a, product.b};
  const auto* slots = exchange(factors, sizeof(factors));
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (std::memcmp(slots[lane], factors, sizeof(factors)) != 0)
      fail("lanes differ in descriptors");
  }
  check_descriptor(product.a);
  check_descriptor(product.b);
  WarpgroupProducts& own = products();
  if (!own.fenced) fail("a product without a fence since the last wait or commit");
  WarpgroupProducts::Accumulators* sums = nullptr;
  for (auto& other : own.accumulators) {
    if (other.visible == product.accumulators) sums = &other;
  }
  if (sums == nullptr) {
    own.accumulators.push_back({product.accumulators, {}, 0});
    sums = &own.accumulators.back();
    std::memcpy(sums->value, product.accumulators, sizeof(sums->value));
    std::memset(product.accumulators, 0xff, sizeof(sums->value));
  }
  ++sums->in_flight;
  ++device().products;
  own.open_group.push_back({product, toss(), {}});
  auto& issued = own.open_group.back();
  if (issued.done) multiply(product, issued.result);
}

void warpgroup_fence() {
  products().fenced = true;
}

void warpgroup_commit() {
  WarpgroupProducts& own = products();
  own.groups.push_back(std::move(own.open_group));
  own.open_group.clear();
  own.fenced = false;
}

void warpgroup_wait(std::size_t groups_left) {
  WarpgroupProducts& own = products();
  own.fenced = false;
  while (own.groups.size() > groups_left) {
    for (auto& issued : own.groups.front()) finish(own, issued);
    own.groups.pop_front();
  }
}

uint32_t shared_address(const void* pointer) {
  const std::ptrdiff_t offset =
      static_cast<const unsigned char*>(pointer) - current().block->shared_begin;
  if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(current_shape().shared_bytes)) {
    fail("an address outside shared memory");
  }
  return static_cast<uint32_t>(offset);
}

void show_to_tensor_cores(const AsyncCopy& written) {
  std::vector<unsigned char>& memory = seen_by_tensor_cores();
  std::memcpy(memory.data() + shared_address(written.destination), written.destination,
              written.bytes + written.zeros);
}

void proxy_fence() {
  for (const AsyncCopy& written : current().unfenced) show_to_tensor_cores(written);
  current().unfenced.clear();
}

void store_shared(void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
  current().unfenced.push_back({to, nullptr, bytes, 0});
}

}  // namespace franca::emulation
