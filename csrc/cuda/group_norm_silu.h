// Launchers of the CUDA kernels of group_norm_silu. `stream` is a cudaStream_t. All device pointers, the workspace
// included, belong to the current device. A launcher returns nullptr, or the text of the CUDA error.
#pragma once

#include <cstddef>

#include "common/group_norm_silu.h"
#include "cuda/device_limits.h"

namespace fastdiff::cuda {

// Bytes of scratch memory, aligned to 16, that the launcher of the same parameters needs; may be 0.
size_t group_norm_silu_workspace_bytes(const GroupNormSiluParams& params, const DeviceLimits& limits);
size_t group_norm_silu_backward_workspace_bytes(const GroupNormSiluBackwardParams& params, const DeviceLimits& limits);

const char* group_norm_silu(const GroupNormSiluParams& params, const DeviceLimits& limits, void* workspace,
                            void* stream);
const char* group_norm_silu_backward(const GroupNormSiluBackwardParams& params, const DeviceLimits& limits,
                                     void* workspace, void* stream);

}  // namespace fastdiff::cuda
