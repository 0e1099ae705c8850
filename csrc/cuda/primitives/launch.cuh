// Starts kernels, and says what the device offers.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/primitives/platform.cuh"

namespace franca::cuda {

struct LaunchShape {
  dim3 grid;
  unsigned threads;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks along x that share a cluster
};

#if defined(FRANCA_EMULATION)

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* /*stream*/,
            const Arguments&... arguments) {
  emulation::run({shape.grid, dim3(shape.threads), shape.shared_bytes, shape.cluster},
                 [&] { kernel(arguments...); });
}

inline int multiprocessors() {
  return emulation::device().multiprocessors;
}

template <class... Parameters>
int active_clusters(void (*)(Parameters...), const LaunchShape& shape) {
  const emulation::Device& device = emulation::device();
  return static_cast<int>(shape.cluster) > device.max_cluster ? 0 : device.multiprocessors;
}

#else

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

template <class Kernel>
void allow_resources(Kernel kernel, const LaunchShape& shape) {
  constexpr std::size_t kAlwaysAllowed = 48 * 1024;
  constexpr unsigned kPortableCluster = 8;
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shape.shared_bytes > kAlwaysAllowed) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          "shared memory of a kernel");
  }
  if (shape.cluster > kPortableCluster) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "cluster size of a kernel");
  }
}

inline cudaLaunchConfig_t launch_config(const LaunchShape& shape, void* stream,
                                        cudaLaunchAttribute* cluster) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cluster->id = cudaLaunchAttributeClusterDimension;
  cluster->val.clusterDim.x = shape.cluster;
  cluster->val.clusterDim.y = 1;
  cluster->val.clusterDim.z = 1;
  config.attrs = cluster;
  // Devices without clusters refuse the attribute, so it is given only where it matters.
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  return config;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
            const Arguments&... arguments) {
  allow_resources(kernel, shape);
  cudaLaunchAttribute cluster;
  const cudaLaunchConfig_t config = launch_config(shape, stream, &cluster);
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "launch of a kernel");
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "attribute of the device");
  return value;
}

inline int multiprocessors() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
}

// How many clusters of this shape run at once; 0 when the device cannot run one.
template <class... Parameters>
int active_clusters(void (*kernel)(Parameters...), const LaunchShape& shape) {
  if (shape.cluster > 1 && !device_attribute(cudaDevAttrClusterLaunch)) return 0;
  if (shape.shared_bytes >
      static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))) {
    return 0;
  }
  allow_resources(kernel, shape);
  int clusters = 0;
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (shape.cluster == 1) {
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
              &clusters, function, static_cast<int>(shape.threads), shape.shared_bytes),
          "occupancy of a kernel");
    return clusters * multiprocessors();
  }
  cudaLaunchAttribute cluster;
  const cudaLaunchConfig_t config = launch_config(shape, nullptr, &cluster);
  if (cudaOccupancyMaxActiveClusters(&clusters, function, &config) != cudaSuccess) {
    (void)cudaGetLastError();  // too large a cluster for this device
    return 0;
  }
  return clusters;
}

#endif

}  // namespace franca::cuda
