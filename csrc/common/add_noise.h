// Parameters of add_noise, shared by the CPU kernel, the CUDA kernel and the bindings.
//
//   noisy[n] = alpha[n] * clean[n] + sigma[n] * noise[n]
//   target[n] = target_clean[n] * clean[n] + target_noise[n] * noise[n]
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff {

// All arrays are dense (batch, count), the elements of a sample in any order, but one order for all.
struct AddNoiseParams {
  int64_t batch = 0;
  int64_t count = 0;
  DType dtype = DType::Float32;
  bool wide_factors = false;  // float64; else float32

  const void* clean = nullptr;
  const void* noise = nullptr;
  // (batch)
  const void* alpha = nullptr;
  const void* sigma = nullptr;
  const void* target_clean = nullptr;
  const void* target_noise = nullptr;
  void* noisy = nullptr;
  void* target = nullptr;
};

}  // namespace fastdiff
