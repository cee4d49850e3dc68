// Launchers of the CUDA geglu. Null, or the text of a CUDA error.
#pragma once

#include "common/geglu.h"

namespace fastdiff::cuda {

const char* geglu(const GegluParams& params, void* stream);
const char* geglu_backward(const GegluBackwardParams& params, void* stream);

}  // namespace fastdiff::cuda
