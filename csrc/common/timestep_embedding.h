// Parameters of timestep_embedding, shared by the CPU kernel, the CUDA kernel and the bindings.
//
//   angle[n, k] = scale * timestep[n] * exp(decay * k),  k < channels / 2
//   embedding[n] = [sin(angle[n]), cos(angle[n])], or with the cosines first; an odd last channel is 0
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/sine.h"

namespace fastdiff {

struct TimestepEmbeddingParams {
  int64_t count = 0;
  int64_t channels = 0;
  DType dtype = DType::Float32;  // of embedding
  bool cosines_first = false;
  double decay = 0.0;
  double scale = 1.0;

  const double* timestep = nullptr;  // (count), stride 1
  void* embedding = nullptr;         // dense (count, channels)
};

constexpr double kTurnsPerRadian = 0.15915494309189535;

}  // namespace fastdiff
