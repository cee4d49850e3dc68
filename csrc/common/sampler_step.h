// Parameters of sampler_step, shared by the CPU kernel, the CUDA kernel and the bindings.
//
//   guided = uncond_prediction + guidance_scale * (prediction - uncond_prediction), or prediction where that is absent
//   result = coefficients[0] * sample + coefficients[1] * guided + sum_i coefficients[2 + i] * history[i]
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff {

// The multistep solvers in use look back at most three predictions, and may add noise. fastdiff/ops/sampler_step.py
// names the same limit.
constexpr int kMaxHistory = 4;

// The op is elementwise and all arrays lie alike in memory, so shapes do not matter: `count` elements, no gaps.
struct SamplerStepParams {
  int64_t count = 0;
  DType dtype = DType::Float32;  // of all arrays
  int history_count = 0;

  const void* sample = nullptr;
  const void* prediction = nullptr;
  const void* uncond_prediction = nullptr;  // null: absent
  const void* history[kMaxHistory] = {};    // the first history_count are there
  void* result = nullptr;

  float guidance_scale = 1.0f;
  float coefficients[2 + kMaxHistory] = {};
};

}  // namespace fastdiff
