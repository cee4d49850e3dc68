// Parameters of timestep_embedding, shared by the CPU kernel, the CUDA kernel and the bindings.
//
//   angle[n, k] = scale * timestep[n] * exp(decay * k),  k < channels / 2
//   embedding[n] = [sin(angle[n]), cos(angle[n])], or with the cosines first; an odd last channel is 0
#pragma once

#include <cstdint>

#include "common/dtype.h"

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

// sin(2 pi s) = s * (kSine0 + kSine1 * s^2 + ... + kSine4 * s^8) for |s| <= 1/4, with relative error below 6e-9.
constexpr float kSine0 = 6.28318527f;
constexpr float kSine1 = -41.3416775f;
constexpr float kSine2 = 81.6022312f;
constexpr float kSine3 = -76.5749922f;
constexpr float kSine4 = 39.7109182f;

constexpr double kTurnsPerRadian = 0.15915494309189535;

}  // namespace fastdiff
