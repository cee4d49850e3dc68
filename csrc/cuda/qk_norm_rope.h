// Launchers of the CUDA kernels of qk_norm_rope. `stream` is a cudaStream_t; all pointers belong to the current device.
// They return nullptr, or the text of the CUDA error.
#pragma once

#include "common/qk_norm_rope.h"
#include "cuda/device_limits.h"

namespace fastdiff::cuda {

const char* qk_norm_rope(const QkNormRopeParams& params, const DeviceLimits& limits, void* stream);

size_t qk_norm_rope_backward_workspace_bytes(const QkNormRopeBackwardParams& params, const DeviceLimits& limits);
const char* qk_norm_rope_backward(const QkNormRopeBackwardParams& params, const DeviceLimits& limits, void* workspace,
                                  void* stream);

}  // namespace fastdiff::cuda
