// Launcher of the CUDA philox_bits, philox_uniform and philox_normal. Null, or the text of a CUDA error.
#pragma once

#include "common/philox.h"
#include "cuda/device_limits.h"

namespace fastdiff::cuda {

const char* philox(const PhiloxParams& params, const DeviceLimits& limits, void* stream);

}  // namespace fastdiff::cuda
