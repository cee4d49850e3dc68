// Launchers of the CUDA gate_residual. Null, or the text of a CUDA error.
#pragma once

#include <cstddef>

#include "common/gate_residual.h"
#include "cuda/device_limits.h"

namespace fastdiff::cuda {

const char* gate_residual(const GateResidualParams& params, void* stream);

size_t gate_residual_backward_workspace_bytes(const GateResidualBackwardParams& params, const DeviceLimits& limits);
const char* gate_residual_backward(const GateResidualBackwardParams& params, const DeviceLimits& limits,
                                   void* workspace, void* stream);

}  // namespace fastdiff::cuda
