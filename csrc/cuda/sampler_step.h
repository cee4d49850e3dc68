// Launcher of the CUDA sampler_step. `stream` is a cudaStream_t; all pointers belong to the current device. Returns
// nullptr, or the text of the CUDA error.
#pragma once

#include "common/sampler_step.h"
#include "cuda/device_limits.h"

namespace fastdiff::cuda {

size_t sampler_step_workspace_bytes(const SamplerStepParams& params, const DeviceLimits& limits);
const char* sampler_step(const SamplerStepParams& params, const DeviceLimits& limits, void* workspace, void* stream);

}  // namespace fastdiff::cuda
