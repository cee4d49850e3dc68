#include "cuda/device_limits.h"

#include <map>
#include <mutex>
#include <stdexcept>

#include "cuda/platform.cuh"

namespace fastdiff::cuda {
namespace {

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  return value;
}

}  // namespace

const DeviceLimits& device_limits(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const int sm_count = attribute(cudaDevAttrMultiProcessorCount, device);
  const int shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return known[device] = {sm_count, static_cast<size_t>(shared_bytes)};
}

}  // namespace fastdiff::cuda
