// Launchers of the CUDA attention. Null, or the text of a CUDA error.
#pragma once

#include <cstddef>

#include "common/attention.h"
#include "cuda/device_limits.h"

namespace fastdiff::cuda {

const char* attention(const AttentionParams& params, const DeviceLimits& limits, void* stream);

size_t attention_backward_workspace_bytes(const AttentionBackwardParams& params, const DeviceLimits& limits);
const char* attention_backward(const AttentionBackwardParams& params, const DeviceLimits& limits, void* workspace,
                               void* stream);

}  // namespace fastdiff::cuda
