// Launchers of the CUDA layer_norm_modulate. Null, or the text of a CUDA error.
#pragma once

#include <cstddef>

#include "common/layer_norm_modulate.h"
#include "cuda/device_limits.h"

namespace fastdiff::cuda {

const char* layer_norm_modulate(const LayerNormModulateParams& params, void* stream);

size_t layer_norm_modulate_backward_workspace_bytes(const LayerNormModulateBackwardParams& params,
                                                    const DeviceLimits& limits);
const char* layer_norm_modulate_backward(const LayerNormModulateBackwardParams& params, const DeviceLimits& limits,
                                         void* workspace, void* stream);

}  // namespace fastdiff::cuda
