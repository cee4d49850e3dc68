// Launcher of the CUDA add_noise. Null, or the text of a CUDA error.
#pragma once

#include "common/add_noise.h"
#include "cuda/device_limits.h"

namespace fastdiff::cuda {

const char* add_noise(const AddNoiseParams& params, const DeviceLimits& limits, void* stream);

}  // namespace fastdiff::cuda
