// sampler_step: elementwise, so all there is to win is bandwidth. Every operand's load is issued before the first is
// used. Products and sums are fused by hand: vectors and single elements must give the same bits, or a sample's result
// would depend on how it is aligned in its batch.
#pragma once

#include "common/sampler_step.h"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

constexpr int kSamplerStepThreads = 256;
constexpr int kSamplerStepBlocks = 4;  // a multiprocessor's: leaves 64 registers, where 7 vectors in flight take 28

// How a thread moves 16 aligned bytes.
template <typename T>
struct VectorAccess {
  using Raw = uint4;
  static constexpr int kWidth = kVectorWidth<T>;

  static __device__ __forceinline__ Raw load(const void* data, int64_t index) {
    return ld16(static_cast<const T*>(data) + index);
  }
  static __device__ __forceinline__ void widen(const Raw& raw, float (&values)[kWidth]) { unpack<T>(raw, values); }
  static __device__ __forceinline__ void store(void* data, int64_t index, const float (&values)[kWidth]) {
    st16(static_cast<T*>(data) + index, pack<T>(values));
  }
};

// How a thread moves one element.
template <typename T>
struct ElementAccess {
  using Raw = float;
  static constexpr int kWidth = 1;

  static __device__ __forceinline__ Raw load(const void* data, int64_t index) {
    return to_float(static_cast<const T*>(data)[index]);
  }
  static __device__ __forceinline__ void widen(const Raw& raw, float (&values)[kWidth]) { values[0] = raw; }
  static __device__ __forceinline__ void store(void* data, int64_t index, const float (&values)[kWidth]) {
    static_cast<T*>(data)[index] = from_float<T>(values[0]);
  }
};

// The step on Access::kWidth elements from `index` on.
template <typename Access>
__device__ __forceinline__ void step_at(const SamplerStepParams& params, int64_t index) {
  constexpr int kWidth = Access::kWidth;
  using Raw = typename Access::Raw;
  const bool has_uncond = params.uncond_prediction != nullptr;
  const Raw sample = Access::load(params.sample, index);
  const Raw prediction = Access::load(params.prediction, index);
  Raw uncond = {}, history[kMaxHistory] = {};
  if (has_uncond) uncond = Access::load(params.uncond_prediction, index);
#pragma unroll
  for (int k = 0; k < kMaxHistory; ++k) {
    if (k < params.history_count) history[k] = Access::load(params.history[k], index);
  }

  float guided[kWidth], values[kWidth], sum[kWidth];
  Access::widen(prediction, guided);
  if (has_uncond) {
    Access::widen(uncond, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) guided[i] = fmaf(params.guidance_scale, guided[i] - values[i], values[i]);
  }
  Access::widen(sample, values);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    sum[i] = fmaf(params.coefficients[1], guided[i], __fmul_rn(params.coefficients[0], values[i]));
  }
#pragma unroll
  for (int k = 0; k < kMaxHistory; ++k) {
    if (k >= params.history_count) continue;
    Access::widen(history[k], values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] = fmaf(params.coefficients[2 + k], values[i], sum[i]);
  }
  Access::store(params.result, index, sum);
}

// The first `vectors` * 16 bytes of every array are moved as vectors, the rest element by element.
template <typename T>
__global__ void __launch_bounds__(kSamplerStepThreads, kSamplerStepBlocks)
    sampler_step_kernel(SamplerStepParams params, int64_t vectors) {
  const int64_t thread = int64_t{blockIdx.x} * kSamplerStepThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kSamplerStepThreads;
  for (int64_t v = thread; v < vectors; v += threads) step_at<VectorAccess<T>>(params, v * kVectorWidth<T>);
  for (int64_t e = vectors * kVectorWidth<T> + thread; e < params.count; e += threads) {
    step_at<ElementAccess<T>>(params, e);
  }
}

}  // namespace fastdiff::cuda
