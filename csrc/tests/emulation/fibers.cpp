#include "fibers.hpp"
#include "warpgroup.hpp"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace franca::emulation {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kSharedAlignment = 1024;
constexpr std::size_t kSharedGuard = 64;  // bytes behind shared memory that must stay as they are
constexpr unsigned char kPoison = 0xff;   // NaN as floats and out of bounds as indices
constexpr unsigned kChangeOneIn = 64;     // how often another warp gets its turn without need

// Speed matters more here than quality: a number is drawn for each switch.
std::minstd_rand generator;
Device the_device;
Fiber* running = nullptr;
const Shape* running_shape = nullptr;
const std::function<void()>* running_body = nullptr;
jmp_buf scheduler;

// One stack for each fiber of a cluster, kept between launches.
unsigned char* stack_of(std::size_t fiber) {
  static std::vector<unsigned char*> stacks;
  while (stacks.size() <= fiber) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for a fiber's stack");
    stacks.push_back(static_cast<unsigned char*>(memory));
  }
  return stacks[fiber];
}

struct Schedule {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<int> ready_warps;  // those with runnable fibers, each once
  std::vector<bool> is_ready;

  void wake(Fiber& fiber) {
    fiber.warp->runnable.push_back(fiber.index);
    if (!is_ready[fiber.warp_index]) {
      is_ready[fiber.warp_index] = true;
      ready_warps.push_back(fiber.warp_index);
    }
  }
};
Schedule* schedule = nullptr;

void fiber_main() {
  (*running_body)();
  running->done = true;
  _longjmp(scheduler, 1);
}

void switch_to(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(fiber.index);
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  setcontext(&context);
}

// Returns when somebody wakes the fiber and its turn comes.
void wait_here() {
  if (_setjmp(running->resume) == 0) _longjmp(scheduler, 1);
}

Fiber* take_next(Schedule& s, int& focus) {
  if (s.ready_warps.empty()) return nullptr;
  if (focus < 0 || s.warps[focus]->runnable.empty() || generator() % kChangeOneIn == 0) {
    focus = s.ready_warps[generator() % s.ready_warps.size()];
  }
  std::vector<int>& lanes = s.warps[focus]->runnable;
  std::swap(lanes[generator() % lanes.size()], lanes.back());
  Fiber* next = s.fibers[lanes.back()].get();
  lanes.pop_back();
  if (lanes.empty()) {
    s.is_ready[focus] = false;
    s.ready_warps.erase(std::find(s.ready_warps.begin(), s.ready_warps.end(), focus));
  }
  return next;
}

void add_block(Schedule& s, Cluster& cluster, const Shape& shape, dim3 index, unsigned rank) {
  cluster.blocks.push_back(std::make_unique<Block>());
  Block& block = *cluster.blocks.back();
  block.index = index;
  block.rank = rank;
  block.cluster = &cluster;
  block.shared.resize(shape.shared_bytes + kSharedAlignment + kSharedGuard);
  const auto address = reinterpret_cast<std::uintptr_t>(block.shared.data());
  block.shared_begin = block.shared.data() + (kSharedAlignment - address % kSharedAlignment);
  std::memset(block.shared.data(), kPoison, block.shared.size());
  const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
  for (unsigned t = 0; t < threads; ++t) {
    if (t % kWarpSize == 0) {
      s.warps.push_back(std::make_unique<Warp>());
      s.is_ready.push_back(false);
    }
    s.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *s.fibers.back();
    fiber.index = static_cast<int>(s.fibers.size()) - 1;
    fiber.lane = static_cast<int>(t % kWarpSize);
    fiber.thread = dim3(t % shape.block.x, t / shape.block.x % shape.block.y,
                        t / shape.block.x / shape.block.y);
    fiber.warp_index = static_cast<int>(s.warps.size()) - 1;
    fiber.warp = s.warps.back().get();
    fiber.block = &block;
    block.fibers.push_back(&fiber);
    s.wake(fiber);
  }
}

// Runs blocks that wait for each other: those of a cluster, or all of a cooperative launch.
void run_together(const Shape& shape, const std::vector<dim3>& indices) {
  Schedule s;
  Cluster cluster;
  for (const dim3& index : indices) {
    add_block(s, cluster, shape, index, static_cast<unsigned>(cluster.blocks.size()));
  }
  schedule = &s;
  std::size_t live = s.fibers.size();
  int focus = -1;
  while (live > 0) {
    Fiber* next = take_next(s, focus);
    if (next == nullptr) fail("deadlock: every thread waits, or some left before a barrier");
    switch_to(*next);
    if (next->done) --live;
  }
  for (const auto& block : cluster.blocks) {
    const unsigned char* end = block->shared_begin + shape.shared_bytes;
    const auto poisoned = [](unsigned char byte) { return byte == kPoison; };
    if (!std::all_of(end, end + kSharedGuard, poisoned)) fail("written behind shared memory");
  }
  schedule = nullptr;
  running = nullptr;
}

}  // namespace

Device& device() {
  return the_device;
}

int device_number() {
  const int sizes = (the_device.multiprocessors * 64 + the_device.max_cluster) * 1024 +
                    static_cast<int>(the_device.max_shared_bytes / 1024);
  return 4 * sizes + (the_device.cooperation ? 2 : 0) + (the_device.warpgroup_products ? 1 : 0);
}

namespace {
std::size_t& shared_limit(const void* kernel) {
  static std::map<std::pair<const void*, int>, std::size_t> limits;
  return limits[{kernel, device_number()}];
}
}  // namespace

void allow_shared_memory(const void* kernel, std::size_t bytes) {
  if (bytes > the_device.max_shared_bytes) fail("more shared memory allowed than there is");
  shared_limit(kernel) = bytes;
}

std::size_t allowed_shared_memory(const void* kernel) {
  return shared_limit(kernel);
}

void set_seed(uint64_t seed) {
  generator.seed(static_cast<unsigned>(seed) * 7919 + 17);
}

bool toss() {
  return generator() % 2 == 0;
}

Fiber& current() {
  return *running;
}

const Shape& current_shape() {
  return *running_shape;
}

void fail(const char* message) {
  std::fprintf(stderr, "emulated device: %s\n", message);
  std::fflush(stderr);
  // No clean-up: this may run on a fiber's stack.
  _Exit(70);
}

void run(const Shape& shape, const std::function<void()>& body) {
  const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
  if (threads == 0 || threads % kWarpSize != 0 || threads > 1024) fail("block size");
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) fail("empty grid");
  if (shape.grid.y > 65535 || shape.grid.z > 65535) fail("too large a grid");
  if (shape.grid.x % shape.cluster != 0) fail("grid is no multiple of the cluster");
  if (static_cast<int>(shape.cluster) > the_device.max_cluster) fail("cluster too large");
  if (shape.shared_bytes > the_device.max_shared_bytes) fail("too much shared memory");
  std::vector<dim3> firsts;
  for (unsigned z = 0; z < shape.grid.z; ++z)
    for (unsigned y = 0; y < shape.grid.y; ++y)
      for (unsigned x = 0; x < shape.grid.x; x += shape.cluster) firsts.emplace_back(x, y, z);
  std::shuffle(firsts.begin(), firsts.end(), generator);
  running_shape = &shape;
  running_body = &body;
  if (shape.cooperative) {
    if (shape.cluster != 1) fail("clusters in a cooperative launch");
    if (static_cast<int>(firsts.size()) > the_device.multiprocessors) fail("too many blocks");
    run_together(shape, firsts);
  } else {
    for (const dim3& first : firsts) {
      std::vector<dim3> indices;
      for (unsigned i = 0; i < shape.cluster; ++i) {
        indices.emplace_back(first.x + i, first.y, first.z);
      }
      run_together(shape, indices);
    }
  }
  running_shape = nullptr;
}

void block_barrier() {
  Block& block = *running->block;
  if (++block.waiting == static_cast<int>(block.fibers.size())) {
    block.waiting = 0;
    for (Fiber* fiber : block.fibers) schedule->wake(*fiber);
  }
  wait_here();
}

namespace {

// The barrier of all fibers that run together.
void common_barrier() {
  Cluster& cluster = *running->block->cluster;
  if (++cluster.waiting == static_cast<int>(schedule->fibers.size())) {
    cluster.waiting = 0;
    for (auto& fiber : schedule->fibers) schedule->wake(*fiber);
  }
  wait_here();
}

std::ptrdiff_t offset_of(const void* own) {
  const std::ptrdiff_t offset =
      static_cast<const unsigned char*>(own) - running->block->shared_begin;
  if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(running_shape->shared_bytes)) {
    fail("an address outside shared memory was mapped to another block");
  }
  return offset;
}

Block& peer(unsigned rank) {
  Cluster& cluster = *running->block->cluster;
  if (rank >= running_shape->cluster) fail("rank outside the cluster");
  return *cluster.blocks[rank];
}

Arrivals& arrivals_of(Block& block, std::ptrdiff_t offset) {
  const auto found = block.arrivals.find(offset);
  if (found == block.arrivals.end()) fail("a barrier that was not initialised");
  return found->second;
}

// Ends the phase if all has come, and lets those go on who wait for that.
void end_phase(Arrivals& arrivals) {
  if (!arrivals.expected || arrivals.bytes_left != 0) return;
  ++arrivals.phase;
  arrivals.expected = false;
  for (int fiber : arrivals.waiting) schedule->wake(*schedule->fibers[fiber]);
  arrivals.waiting.clear();
}

void deliver(Arrivals& arrivals) {
  std::shuffle(arrivals.sent.begin(), arrivals.sent.end(), generator);
  for (const Sent& sent : arrivals.sent) {
    std::memcpy(sent.destination, sent.value, sent.bytes);
    arrivals.bytes_left -= static_cast<int64_t>(sent.bytes);
  }
  arrivals.sent.clear();
  end_phase(arrivals);
}

}  // namespace

void cluster_barrier() {
  if (running_shape->cooperative) fail("a barrier of clusters in a cooperative launch");
  common_barrier();
}

void grid_barrier() {
  if (!running_shape->cooperative) fail("a barrier of the grid without a cooperative launch");
  common_barrier();
}

void arrivals_init(ArrivalBarrier* barrier) {
  const bool fresh = running->block->arrivals.try_emplace(offset_of(barrier)).second;
  if (!fresh) fail("a barrier was initialised twice");
}

void arrivals_end(ArrivalBarrier* barrier) {
  const Arrivals& arrivals = arrivals_of(*running->block, offset_of(barrier));
  if (arrivals.expected || arrivals.bytes_left != 0 || !arrivals.sent.empty()) {
    fail("a barrier ended within a phase");
  }
  running->block->arrivals.erase(offset_of(barrier));
}

void arrivals_expect(ArrivalBarrier* barrier, std::size_t bytes) {
  Arrivals& arrivals = arrivals_of(*running->block, offset_of(barrier));
  if (arrivals.expected) fail("bytes were expected twice in a phase");
  arrivals.expected = true;
  arrivals.bytes_left += static_cast<int64_t>(bytes);
  if (!arrivals.waiting.empty()) deliver(arrivals);
}

void arrivals_wait(ArrivalBarrier* barrier, unsigned phase) {
  Arrivals& arrivals = arrivals_of(*running->block, offset_of(barrier));
  while (arrivals.phase % 2 == static_cast<int64_t>(phase % 2)) {
    deliver(arrivals);
    if (arrivals.phase % 2 != static_cast<int64_t>(phase % 2)) return;
    arrivals.waiting.push_back(running->index);
    wait_here();
  }
}

void send(void* own, ArrivalBarrier* barrier, unsigned rank, const void* value, std::size_t bytes) {
  Block& block = peer(rank);
  Arrivals& arrivals = arrivals_of(block, offset_of(barrier));
  Sent sent{block.shared_begin + offset_of(own), {}, bytes};
  std::memcpy(sent.value, value, bytes);
  arrivals.sent.push_back(sent);
  if (!arrivals.waiting.empty()) deliver(arrivals);
}

const unsigned char (*exchange(const void* value, std::size_t bytes)) [kCollectiveBytes] {
  if (bytes > kCollectiveBytes) fail("too large a value for a warp collective");
  Warp& warp = *running->warp;
  const int64_t generation = warp.generation;
  unsigned char (*slots)[kCollectiveBytes] = warp.slots[generation % 2];
  std::memcpy(slots[running->lane], value, bytes);
  if (++warp.arrived == kWarpSize) {
    warp.arrived = 0;
    ++warp.generation;
    const int first = running->index - running->lane;
    for (int lane = 0; lane < kWarpSize; ++lane) schedule->wake(*schedule->fibers[first + lane]);
  }
  wait_here();
  return slots;
}

static void perform(const AsyncCopy& copy) {
  std::memcpy(copy.destination, copy.source, copy.bytes);
  std::memset(static_cast<char*>(copy.destination) + copy.bytes, 0, copy.zeros);
  running->unfenced.push_back(copy);
}

void async_copy(const AsyncCopy& copy) {
  if (!toss()) {
    running->open_group.push_back(copy);
    return;
  }
  perform(copy);
  if (!running->block->async_shared.empty()) show_to_tensor_cores(copy);
}

void async_commit() {
  running->groups.push_back(std::move(running->open_group));
  running->open_group.clear();
}

void async_wait(std::size_t groups_left) {
  while (running->groups.size() > groups_left) {
    for (const AsyncCopy& copy : running->groups.front()) perform(copy);
    running->groups.pop_front();
  }
}

}  // namespace franca::emulation
