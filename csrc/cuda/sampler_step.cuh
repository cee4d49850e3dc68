// sampler_step: elementwise, so without noise all there is to win is bandwidth. Every operand's load is issued before
// the first is used. Products and sums are fused by hand: vectors and single elements must give the same bits, or a
// sample's result would depend on how it is aligned in its batch.
#pragma once

#include "cuda/philox_words.cuh"
#include "cuda/sampler_step_rescale.cuh"

namespace fastdiff::cuda {

// A multiprocessor's blocks: leaves 128 registers, where operands in flight take up to 48 and what noise is drawn from
// as many. Two blocks' operands are enough bytes under way.
constexpr int kSamplerStepBlocks = 2;

// What the elements of one sample have in common.
struct StepFactors {
  StepCoefficients row;
  float rescale;
  float limit;
  bool divides;  // by the limit
  uint64_t offset;
  uint64_t seed;
  bool noisy;
};

__device__ __forceinline__ StepFactors factors_of(const SamplerStepParams& params, const DeviationParts& deviation,
                                                  int64_t sample) {
  const int64_t step = step_of(params);
  StepFactors f = {
      row_of(params, step), 1.0f, 0.0f, params.limits != nullptr, static_cast<uint64_t>(step) + 1, 0, false};
  f.rescale = rescale_factor(deviation, sample, params.count, f.row.rescale);
  f.limit = f.divides ? params.limits[sample] : f.row.clip;
  if (f.limit != f.limit) f.row.model_sample = f.limit;  // the clip would ignore it
  f.noisy = params.seeds != nullptr && f.row.noise != 0.0f;
  if (f.noisy) f.seed = static_cast<uint64_t>(params.seeds[sample]);
  return f;
}

// NaN stays.
__device__ __forceinline__ float clip(float value, float limit) {
  return value > limit ? limit : value < -limit ? -limit : value;
}

// The step on a unit: `at` is the index of its first element in the arrays, `element` that in its sample.
template <typename T, typename P, int kWidth>
__device__ __forceinline__ void step_at(const SamplerStepParams& params, const StepFactors& f, int64_t at,
                                        int64_t element) {
  const bool has_uncond = params.uncond_prediction != nullptr;
  StepUnit<T, kWidth> sample, history[kMaxHistory];
  StepUnit<P, kWidth> prediction, uncond;
  sample.load(params.sample, at);
  prediction.load(params.prediction, at);
  if (has_uncond) uncond.load(params.uncond_prediction, at);
#pragma unroll
  for (int k = 0; k < kMaxHistory; ++k) {
    if (k < params.history_count) history[k].load(params.history[k], at);
  }

  float guided[kWidth], values[kWidth], model[kWidth], sum[kWidth];
  prediction.widen(guided);
  if (has_uncond) {
    uncond.widen(values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) guided[i] = __fmul_rn(f.rescale, guide(guided[i], values[i], f.row.guidance));
  }
  sample.widen(values);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    model[i] = clip(fmaf(f.row.model_guided, guided[i], __fmul_rn(f.row.model_sample, values[i])), f.limit);
    if (f.divides) model[i] = __fdiv_rn(model[i], f.limit);
    sum[i] = fmaf(f.row.model, model[i], fmaf(f.row.guided, guided[i], __fmul_rn(f.row.sample, values[i])));
  }
#pragma unroll
  for (int k = 0; k < kMaxHistory; ++k) {
    if (k >= params.history_count) continue;
    history[k].widen(values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] = fmaf(f.row.history[k], values[i], sum[i]);
  }
  if (f.noisy) {
    normal_numbers(static_cast<uint64_t>(element), f.offset, f.seed, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] = fmaf(f.row.noise, values[i], sum[i]);
  }
  StepUnit<T, kWidth>::store(params.result, at, sum);
  if (params.model != nullptr) StepUnit<T, kWidth>::store(params.model, at, model);
}

template <typename T, typename P>
__global__ void __launch_bounds__(kSampleRowThreads, kSamplerStepBlocks)
    sampler_step_kernel(SamplerStepParams params, DeviationParts deviation, bool aligned) {
  constexpr int kWidth = kStepWidth<T, P>;
  for_each_sample(params.batch, [&](int64_t sample) {
    const StepFactors factors = factors_of(params, deviation, sample);
    for_each_unit<kWidth>(params.count, [&](int64_t element, int valid) {
      const int64_t at = sample * params.count + element;
      if (aligned && valid == kWidth) {
        step_at<T, P, kWidth>(params, factors, at, element);
      } else {
#pragma unroll 1
        for (int i = 0; i < valid; ++i) step_at<T, P, 1>(params, factors, at + i, element + i);
      }
    });
  });
}

}  // namespace fastdiff::cuda
