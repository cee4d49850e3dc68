// What the launch plans need to know of a GPU.
#pragma once

#include <cstddef>

namespace fastdiff::cuda {

struct DeviceLimits {
  int sm_count = 0;
  size_t shared_bytes_per_block = 0;  // the opt-in maximum
};

// Limits of a device, asked of the runtime once. Throws std::runtime_error with CUDA's text where it has no answer.
const DeviceLimits& device_limits(int device);

}  // namespace fastdiff::cuda
