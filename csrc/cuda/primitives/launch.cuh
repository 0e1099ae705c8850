// Starts kernels, and says what the device offers.
//
// What the driver is asked or told about a kernel is remembered, so that a launch in the hot path
// (or while a graph is captured) is a launch and nothing else.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/primitives/platform.cuh"

namespace franca::cuda {

struct LaunchShape {
  dim3 grid;
  unsigned threads;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks along x that share a cluster
  bool cooperative = false;  // all blocks run at the same time; see fits_together
};

constexpr std::size_t kSharedAlwaysAllowed = 48 * 1024;
constexpr unsigned kPortableCluster = 8;

namespace driver {

#if defined(FRANCA_EMULATION)

inline int current_device() {
  return emulation::device_number();
}

inline int multiprocessors() {
  ++emulation::device().queries;
  return emulation::device().multiprocessors;
}

inline void allow_shared_memory(const void* function, std::size_t bytes) {
  emulation::allow_shared_memory(function, bytes);
}

inline void allow_large_clusters(const void*) {}

inline std::size_t most_shared_bytes() {
  return emulation::device().max_shared_bytes;
}

inline std::size_t shared_bytes_of_multiprocessor() {
  return emulation::device().max_shared_bytes + 1024;
}

inline bool has_warpgroup_products(const void*) {
  return emulation::device().warpgroup_products;
}

inline bool offers_cluster(unsigned blocks) {
  return static_cast<int>(blocks) <= emulation::device().max_cluster;
}

inline bool offers_cooperation() {
  ++emulation::device().queries;
  return emulation::device().cooperation;
}

inline int active_clusters(const void*, const LaunchShape&) {
  ++emulation::device().queries;
  return emulation::device().multiprocessors;
}

inline bool has_code(const void*) {
  return true;
}

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), const LaunchShape& shape, void* /*stream*/,
           const Arguments&... arguments) {
  if (shape.shared_bytes >
      std::max(kSharedAlwaysAllowed,
               emulation::allowed_shared_memory(reinterpret_cast<const void*>(kernel)))) {
    emulation::fail("more shared memory than the kernel was allowed");
  }
  emulation::run(
      {shape.grid, dim3(shape.threads), shape.shared_bytes, shape.cluster, shape.cooperative},
      [&] { kernel(arguments...); });
}

#else

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next caller would be told of it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "current device");
  return device;
}

inline int attribute(cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, current_device()), "attribute of the device");
  return value;
}

inline int multiprocessors() {
  return attribute(cudaDevAttrMultiProcessorCount);
}

inline void allow_shared_memory(const void* function, std::size_t bytes) {
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "shared memory of a kernel");
}

inline void allow_large_clusters(const void* function) {
  check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cluster size of a kernel");
}

// `attribute` must live as long as what is returned.
inline cudaLaunchConfig_t launch_config(const LaunchShape& shape, void* stream,
                                        cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  // Devices refuse attributes that they do not know, so none is given where it does not matter.
  config.attrs = attribute;
  config.numAttrs = shape.cluster > 1 || shape.cooperative ? 1 : 0;
  if (shape.cooperative) {
    attribute->id = cudaLaunchAttributeCooperative;
    attribute->val.cooperative = 1;
  } else {
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = shape.cluster;
    attribute->val.clusterDim.y = 1;
    attribute->val.clusterDim.z = 1;
  }
  return config;
}

inline std::size_t most_shared_bytes() {
  return static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

inline std::size_t shared_bytes_of_multiprocessor() {
  return static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
}

inline bool offers_cluster(unsigned blocks) {
  return blocks == 1 || attribute(cudaDevAttrClusterLaunch);
}

inline bool offers_cooperation() {
  return attribute(cudaDevAttrCooperativeLaunch);
}

inline cudaFuncAttributes attributes_of(const void* function) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, function), "attributes of a kernel");
  return attributes;
}

// Where its code has none, the kernel's body was left out, and with it the 64 registers for the
// accumulators.
inline bool has_warpgroup_products(const void* function) {
  return attributes_of(function).numRegs > 64;
}

// For a shape that the device offers and the kernel has been allowed.
inline int active_clusters(const void* function, const LaunchShape& shape) {
  int clusters = 0;
  if (shape.cluster == 1) {
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
              &clusters, function, static_cast<int>(shape.threads), shape.shared_bytes),
          "occupancy of a kernel");
    return clusters * multiprocessors();
  }
  // Code for older devices that runs here as well takes every block for a cluster.
  constexpr int kFirstWithClusters = 90;
  if (attributes_of(function).ptxVersion < kFirstWithClusters) return 0;
  cudaLaunchAttribute cluster;
  const cudaLaunchConfig_t config = launch_config(shape, nullptr, &cluster);
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, function, &config);
  if (status == cudaErrorInvalidClusterSize || status == cudaErrorInvalidConfiguration ||
      status == cudaErrorInvalidValue) {
    (void)cudaGetLastError();  // too large a cluster for this device
    return 0;
  }
  check(status, "occupancy of a kernel's clusters");
  return clusters;
}

inline bool has_code(const void* function) {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, function) == cudaSuccess) return true;
  (void)cudaGetLastError();
  return false;
}

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
           const Arguments&... arguments) {
  cudaLaunchAttribute cluster;
  const cudaLaunchConfig_t config = launch_config(shape, stream, &cluster);
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "launch of a kernel");
}

#endif

}  // namespace driver

// Values of a function that is slow to ask, by their keys; several threads may ask.
template <class Key, class Value>
class Memory {
 public:
  template <class Ask>
  Value get(const Key& key, const Ask& ask) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = values_.find(key);
    if (found != values_.end()) return found->second;
    return values_.emplace(key, ask()).first->second;
  }

  // Calls raise() when `value` is more than was ever given for the key.
  template <class Raise>
  void at_least(const Key& key, const Value& value, const Raise& raise) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = values_.find(key);
    if (found != values_.end() && found->second >= value) return;
    raise();
    values_[key] = value;
  }

 private:
  std::mutex mutex_;
  std::map<Key, Value> values_;
};

// A kernel keeps the largest request, so that shapes of different sizes may take turns.
inline void allow_resources(const void* function, const LaunchShape& shape) {
  if (shape.shared_bytes <= kSharedAlwaysAllowed && shape.cluster <= kPortableCluster) return;
  using Key = std::pair<const void*, int>;
  static Memory<Key, std::size_t> shared, cluster;
  const Key key{function, driver::current_device()};
  if (shape.shared_bytes > kSharedAlwaysAllowed) {
    shared.at_least(key, shape.shared_bytes,
                    [&] { driver::allow_shared_memory(function, shape.shared_bytes); });
  }
  if (shape.cluster > kPortableCluster) {
    cluster.at_least(key, 1, [&] { driver::allow_large_clusters(function); });
  }
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
            const Arguments&... arguments) {
  allow_resources(reinterpret_cast<const void*>(kernel), shape);
  driver::start(kernel, shape, stream, arguments...);
}

inline int multiprocessors() {
  static Memory<int, int> known;
  return known.get(driver::current_device(), [] { return driver::multiprocessors(); });
}

// Shared memory that a block may ask for.
inline std::size_t most_shared_bytes() {
  static Memory<int, std::size_t> known;
  return known.get(driver::current_device(), [] { return driver::most_shared_bytes(); });
}

// Shared memory that the blocks of a multiprocessor have together; each takes 1 KiB more than it
// asks for.
inline std::size_t shared_bytes_of_multiprocessor() {
  static Memory<int, std::size_t> known;
  return known.get(driver::current_device(),
                   [] { return driver::shared_bytes_of_multiprocessor(); });
}

// Whether a kernel that multiplies by warpgroups was compiled for this device.
template <class... Parameters>
bool has_warpgroup_products(void (*kernel)(Parameters...)) {
  static Memory<int, bool> known;
  return known.get(driver::current_device(), [&] {
    return driver::has_warpgroup_products(reinterpret_cast<const void*>(kernel));
  });
}

// How many clusters of this shape run at once; 0 when the device cannot run one.
template <class... Parameters>
int active_clusters(void (*kernel)(Parameters...), const LaunchShape& shape) {
  using Key = std::tuple<const void*, int, unsigned, std::size_t, unsigned>;
  static Memory<Key, int> known;
  const auto* function = reinterpret_cast<const void*>(kernel);
  const Key key{function, driver::current_device(), shape.threads, shape.shared_bytes,
                shape.cluster};
  return known.get(key, [&] {
    if (!driver::offers_cluster(shape.cluster)) return 0;
    if (shape.shared_bytes > most_shared_bytes()) return 0;
    allow_resources(function, shape);
    return driver::active_clusters(function, shape);
  });
}

// Whether all blocks of a cooperative launch can run at the same time.
template <class... Parameters>
bool fits_together(void (*kernel)(Parameters...), const LaunchShape& shape) {
  static Memory<int, bool> known;
  const bool offered =
      known.get(driver::current_device(), [] { return driver::offers_cooperation(); });
  const int64_t blocks = static_cast<int64_t>(shape.grid.x) * shape.grid.y * shape.grid.z;
  return offered && blocks <= active_clusters(kernel, shape);
}

}  // namespace franca::cuda
