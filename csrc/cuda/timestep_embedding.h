// Launcher of the CUDA kernel of timestep_embedding. `stream` is a cudaStream_t; all pointers belong to the current
// device. Returns nullptr, or the text of the CUDA error.
#pragma once

#include "common/timestep_embedding.h"

namespace fastdiff::cuda {

const char* timestep_embedding(const TimestepEmbeddingParams& params, void* stream);

}  // namespace fastdiff::cuda
