// Runs the threads of CUDA blocks on the host, one fiber for each thread, in a random order that a
// seed determines.
//
// A fiber runs until it waits for others (barrier of a block, warp, cluster or grid, shuffle,
// arrival). Which one runs next is drawn such that one warp may get as far ahead of the others as
// the barriers allow. With shared memory poisoned at the start of each block, a missing barrier
// therefore changes results.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace franca::emulation {

constexpr int kWarpSize = 32;
constexpr std::size_t kCollectiveBytes = 64;  // what one lane may hand to a warp collective

// What the emulated device offers. Tests change it to reach other code paths.
struct Device {
  int multiprocessors = 3;
  int max_cluster = 16;  // 1: a device without clusters
  std::size_t max_shared_bytes = 227 * 1024;
  bool cooperation = true;
  bool warpgroup_products = true;  // wgmma, and code for it
  int queries = 0;                 // how often something slow was asked
  int products = 0;                // of warpgroups, by threads
};
Device& device();

// Every set of properties that a test chooses is a device of its own.
int device_number();

// The limit of dynamic shared memory that was last set for a kernel on this device; 0 if none was.
void allow_shared_memory(const void* kernel, std::size_t bytes);
std::size_t allowed_shared_memory(const void* kernel);

// The seed of the launches that follow.
void set_seed(uint64_t seed);

struct Cluster;
struct Block;

struct Warp {
  std::vector<int> runnable;  // fibers
  int arrived = 0;
  int64_t generation = 0;
  // Double buffered: a lane may read the last result while another one already starts the next.
  alignas(16) unsigned char slots[2][kWarpSize][kCollectiveBytes];
};

struct AsyncCopy {
  void* destination;
  const void* source;
  std::size_t bytes;
  std::size_t zeros;  // bytes that are set to zero after those copied
};

struct Block;
struct WarpgroupProducts;

// Counts bytes that are sent to a block. Its state is kept beside the memory it lies in, so that
// poison there or a second use of the memory is noticed.
struct ArrivalBarrier {
  uint64_t word;
};

struct Sent {
  void* destination;
  unsigned char value[16];
  std::size_t bytes;
};

struct Arrivals {
  int64_t phase = 0;  // that is open
  bool expected = false;
  int64_t bytes_left = 0;    // until the phase ends; negative before they are expected
  std::vector<Sent> sent;    // that have not arrived yet
  std::vector<int> waiting;  // fibers
};

struct Fiber {
  jmp_buf resume;
  bool started = false;
  bool done = false;
  int index = 0;
  int lane = 0;
  dim3 thread;
  Warp* warp = nullptr;
  int warp_index = 0;  // within the cluster
  Block* block = nullptr;
  std::vector<AsyncCopy> open_group;
  std::deque<std::vector<AsyncCopy>> groups;
  std::vector<AsyncCopy> unfenced;  // what it wrote that the tensor cores need not see yet
  std::shared_ptr<WarpgroupProducts> products;
};

struct Block {
  dim3 index;
  unsigned rank = 0;  // in its cluster
  int waiting = 0;
  std::vector<unsigned char> shared;
  unsigned char* shared_begin = nullptr;    // aligned
  std::vector<unsigned char> async_shared;  // as the tensor cores see it, see warpgroup.hpp
  std::vector<Fiber*> fibers;
  Cluster* cluster = nullptr;
  std::map<std::ptrdiff_t, Arrivals> arrivals;  // by the barrier's place in shared memory
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  int waiting = 0;
};

struct Shape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks along x
  bool cooperative = false;  // all blocks run at the same time
};

// Runs `body` for every thread of the grid; clusters run one after the other, in random order.
void run(const Shape& shape, const std::function<void()>& body);

// The thread that runs now, and the launch it belongs to.
Fiber& current();
const Shape& current_shape();

// Heads or tails, as the seed decides.
bool toss();

// Ends the process with a message; a test that hits this is red.
[[noreturn]] void fail(const char* message);

void block_barrier();
void cluster_barrier();
void grid_barrier();  // of a cooperative launch

// What is sent arrives as late as the waits allow, and in any order.
void arrivals_init(ArrivalBarrier* barrier);
void arrivals_end(ArrivalBarrier* barrier);
void arrivals_expect(ArrivalBarrier* barrier, std::size_t bytes);
void arrivals_wait(ArrivalBarrier* barrier, unsigned phase);
void send(void* own, ArrivalBarrier* barrier, unsigned rank, const void* value, std::size_t bytes);

// Hands `bytes` to the other lanes of the warp and returns the slots of all of them, each of
// kCollectiveBytes. Every lane of the warp must take part.
const unsigned char (*exchange(const void* value, std::size_t bytes))[kCollectiveBytes];

// Copies happen as late as the waits allow or at once, as the seed decides: the one finds missing
// waits, the other memory that is still read.
void async_copy(const AsyncCopy& copy);
void async_commit();
void async_wait(std::size_t groups_left);

}  // namespace franca::emulation
