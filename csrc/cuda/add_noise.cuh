// add_noise: a thread makes a vector of both outputs. Vectors and single elements give the same bits.
#pragma once

#include "common/add_noise.h"
#include "cuda/sample_rows.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

__device__ __forceinline__ float factor_of(const void* factors, int64_t sample, bool wide) {
  return wide ? static_cast<float>(static_cast<const double*>(factors)[sample])
              : static_cast<const float*>(factors)[sample];
}

template <typename T>
__global__ void __launch_bounds__(kSampleRowThreads) add_noise_kernel(AddNoiseParams params, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  for_each_sample(params.batch, [&](int64_t sample) {
    const bool wide = params.wide_factors;
    const float alpha = factor_of(params.alpha, sample, wide), sigma = factor_of(params.sigma, sample, wide);
    const float target_clean = factor_of(params.target_clean, sample, wide);
    const float target_noise = factor_of(params.target_noise, sample, wide);
    for_each_unit<kWidth>(params.count, [&](int64_t element, int valid) {
      const int64_t at = sample * params.count + element;
      const bool whole = aligned && valid == kWidth;
      float clean[kWidth], noise[kWidth], mixed[kWidth];
      load_floats(static_cast<const T*>(params.clean) + at, valid, whole, clean);
      load_floats(static_cast<const T*>(params.noise) + at, valid, whole, noise);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) mixed[i] = fmaf(alpha, clean[i], __fmul_rn(sigma, noise[i]));
      store_floats(static_cast<T*>(params.noisy) + at, mixed, valid, whole);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) mixed[i] = fmaf(target_clean, clean[i], __fmul_rn(target_noise, noise[i]));
      store_floats(static_cast<T*>(params.target) + at, mixed, valid, whole);
    });
  });
}

}  // namespace fastdiff::cuda
