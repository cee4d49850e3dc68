// Forward layer_norm_modulate. The threads of a row keep its vectors in registers, so it is read from memory once; its
// variance is taken around its mean, never as E[x^2] - E[x]^2. Longer rows are read again instead, from the caches.
#pragma once

#include "common/layer_norm_modulate.h"
#include "cuda/layer_norm_modulate_rows.cuh"

namespace fastdiff::cuda {

// The mean is mean + correction: far from zero, one float32 does not hold it well enough.
struct RowMoments {
  float mean;
  float correction;
  float mean_square;
};

// weight * (1 + scale) and bias * (1 + scale) + shift of a vector.
template <int kWidth>
__device__ __forceinline__ void load_affine(const LayerNormModulateParams& params, const TokenVector& at,
                                            float (&gain)[kWidth], float (&offset)[kWidth]) {
  float factor[kWidth];
  load_modulation(params.scale, at, 0.0f, factor);
  load_modulation(params.weight, at, 1.0f, gain);
  load_modulation(params.bias, at, 0.0f, offset);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    factor[i] += 1.0f;
    gain[i] *= factor[i];
    offset[i] = __fmul_rn(offset[i], factor[i]);
  }
  load_modulation(params.shift, at, 0.0f, factor);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) offset[i] += factor[i];
}

template <typename T, int kRounds>
__global__ void __launch_bounds__(kRowThreads, 1)
    layer_norm_modulate_kernel(LayerNormModulateParams params, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const GateResidualParams& input = params.input;
  const Row row = this_row(input);
  const auto load = [&](const TokenVector& at, float (&values)[kWidth]) { load_sum<T>(input, at, values); };
  const LoadedVectors<T, kRounds, decltype(load)> vectors(input, row, aligned, load);

  float totals[2] = {0.0f, 0.0f};
  vectors.for_each([&](const TokenVector& at, const float (&values)[kWidth]) {
    if (input.sum != nullptr) store_activation<T>(input.sum, input, at, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) totals[0] += i < at.valid ? values[i] : 0.0f;
  });
  const float channels = static_cast<float>(input.channels);
  RowMoments moments = {0.0f, 0.0f, 0.0f};
  row_sums(row, totals);
  if (!params.rms) moments.mean = __fdiv_rn(totals[0], channels);

  totals[0] = totals[1] = 0.0f;
  vectors.for_each([&](const TokenVector& at, const float (&values)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float deviation = i < at.valid ? values[i] - moments.mean : 0.0f;
      totals[0] += deviation;
      totals[1] = fmaf(deviation, deviation, totals[1]);
    }
  });
  row_sums(row, totals);
  if (!params.rms) moments.correction = __fdiv_rn(totals[0], channels);
  moments.mean_square = fmaf(-moments.correction, moments.correction, __fdiv_rn(totals[1], channels));
  const float rstd = rsqrtf(moments.mean_square + params.eps);

  vectors.for_each([&](const TokenVector& at, const float (&values)[kWidth]) {
    float gain[kWidth], offset[kWidth], y[kWidth];
    load_affine(params, at, gain, offset);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float normalised = __fmul_rn(values[i] - moments.mean - moments.correction, rstd);
      y[i] = fmaf(normalised, gain[i], offset[i]);
    }
    store_activation<T>(params.y, input, at, y);
  });
  if (row.exists && row.thread == 0) {
    params.mean[row.index] = moments.mean + moments.correction;
    params.rstd[row.index] = rstd;
  }
}

}  // namespace fastdiff::cuda
