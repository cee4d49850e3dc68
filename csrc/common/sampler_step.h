// Parameters of sampler_step, shared by the CPU kernel, the CUDA kernel and the bindings. With c a row of coefficients:
//
//   guided = uncond + c.guidance * (prediction - uncond), or prediction where there is no uncond
//   guided = guided * (c.rescale * std(prediction) / std(guided) + 1 - c.rescale), std over a sample
//   model  = clip(c.model_sample * sample + c.model_guided * guided, -c.clip, c.clip)
//   result = c.sample * sample + c.guided * guided + c.model * model + sum_i c.history[i] * history[i]
//            + c.noise * noise
//
// With limits, model is clipped to +-limit of its sample and then divided by it, whatever c.clip.
// The noise is that of philox_normal with offset step + 1.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff {

// The multistep solvers in use look back at most three predictions. fastdiff/ops/sampler_step.py names the same limit.
constexpr int kMaxHistory = 4;

// The columns of a row, in the order of fastdiff.ops.StepColumn.
struct StepCoefficients {
  float guidance, rescale, model_sample, model_guided, clip, sample, guided, model, noise;
  float history[kMaxHistory];
};
constexpr int kStepColumns = sizeof(StepCoefficients) / sizeof(float);

// All arrays are dense (batch, count). The elements of a sample lie in any order, but in one order for all arrays, and
// in C order where there are seeds.
struct SamplerStepParams {
  int64_t batch = 0;
  int64_t count = 0;
  DType dtype = DType::Float32;             // of sample, history, result and model
  DType prediction_dtype = DType::Float32;  // of both predictions
  int history_count = 0;

  const void* sample = nullptr;
  const void* prediction = nullptr;
  const void* uncond_prediction = nullptr;  // null: absent
  const void* history[kMaxHistory] = {};    // the first history_count are there
  const int64_t* seeds = nullptr;           // (batch); null: no noise
  const float* limits = nullptr;            // (batch); null: c.clip
  void* result = nullptr;                   // may be sample
  void* model = nullptr;                    // may be one of history; null: not wanted

  // On the device. A step that is not one of the rows gives NaN.
  const StepCoefficients* coefficients = nullptr;
  int64_t steps = 0;
  const int64_t* step = nullptr;  // null: step_value
  int64_t step_value = 0;
};

}  // namespace fastdiff
