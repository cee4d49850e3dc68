// The row of coefficients of a step, and the units of elements that a thread moves.
#pragma once

#include <cmath>

#include "common/sampler_step.h"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

__device__ __forceinline__ int64_t step_of(const SamplerStepParams& params) {
  return params.step != nullptr ? *params.step : params.step_value;
}

__device__ __forceinline__ StepCoefficients row_of(const SamplerStepParams& params, int64_t step) {
  if (step >= 0 && step < params.steps) return params.coefficients[step];
  return {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, {NAN, NAN, NAN, NAN}};
}

__device__ __forceinline__ float guide(float prediction, float uncond, float guidance) {
  return fmaf(guidance, prediction - uncond, uncond);
}

// Elements that a thread works on at a time: 16 bytes of the narrower of two types.
template <typename T, typename P>
constexpr int kStepWidth = kVectorWidth<T> > kVectorWidth<P> ? kVectorWidth<T> : kVectorWidth<P>;

// kWidth elements of an array, in registers as they lie in memory: 16 bytes at a time, or one element.
template <typename T, int kWidth>
class StepUnit {
 public:
  __device__ __forceinline__ void load(const void* data, int64_t index) {
    const T* elements = static_cast<const T*>(data) + index;
    if constexpr (kWidth == 1) {
      element_ = *elements;
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) vectors_[v] = ld16_written(elements + v * kVectorWidth<T>);
    }
  }

  __device__ __forceinline__ void widen(float (&values)[kWidth]) const {
    if constexpr (kWidth == 1) {
      values[0] = to_float(element_);
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float part[kVectorWidth<T>];
        unpack<T>(vectors_[v], part);
#pragma unroll
        for (int i = 0; i < kVectorWidth<T>; ++i) values[v * kVectorWidth<T> + i] = part[i];
      }
    }
  }

  static __device__ __forceinline__ void store(void* data, int64_t index, const float (&values)[kWidth]) {
    T* elements = static_cast<T*>(data) + index;
    if constexpr (kWidth == 1) {
      *elements = from_float<T>(values[0]);
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float part[kVectorWidth<T>];
#pragma unroll
        for (int i = 0; i < kVectorWidth<T>; ++i) part[i] = values[v * kVectorWidth<T> + i];
        st16(elements + v * kVectorWidth<T>, pack<T>(part));
      }
    }
  }

 private:
  static constexpr int kVectors = kWidth == 1 ? 1 : kWidth / kVectorWidth<T>;
  union {
    uint4 vectors_[kVectors];
    T element_;
  };
};

}  // namespace fastdiff::cuda
