// Backward layer_norm_modulate. With n the normalised row, gain = weight * (1 + scale) and g = dy * gain,
//
//   dresidual = rstd * (g - mean(g) - n * mean(g * n)) + dsum      (no mean(g) for RMS)
//   dx = gate * dresidual      dgate = sum dresidual * x
//   dshift = sum dy            dscale = sum dy * (n * weight + bias)
//   dbias = sum dy * (1 + scale)      dweight = sum dy * (1 + scale) * n
//
// over the tokens that share the operand. With dy' = dy, or dy * (1 + scale) where scale differs from token to token,
// all of the sums follow from sum dy' and sum dy' * n. One kernel works row by row; another sums over tokens.
#pragma once

#include "common/layer_norm_modulate.h"
#include "cuda/layer_norm_modulate_rows.cuh"
#include "cuda/token_sums.cuh"

namespace fastdiff::cuda {

enum ModulationSum { kOfGradient, kOfProduct, kOfGate, kModulationSums };

// dy, 1 + scale, weight, and n of a vector.
template <typename T>
struct RowTerms {
  static constexpr int kWidth = kVectorWidth<T>;
  float dy[kWidth];
  float factor[kWidth];
  float weight[kWidth];
  float normalised[kWidth];

  __device__ __forceinline__ void load(const LayerNormModulateBackwardParams& params, const TokenVector& at, float mean,
                                       float rstd) {
    const LayerNormModulateParams& forward = params.forward;
    load_activation<T>(params.dy, at, dy);
    load_activation<T>(params.normalised, at, normalised);
    load_modulation(forward.scale, at, 0.0f, factor);
    load_modulation(forward.weight, at, 1.0f, weight);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      factor[i] += 1.0f;
      normalised[i] = __fmul_rn(normalised[i] - mean, rstd);
    }
  }

  // g
  __device__ __forceinline__ float gradient(int i) const { return __fmul_rn(__fmul_rn(dy[i], factor[i]), weight[i]); }
};

// Gradients of a token's own modulations are written here, too.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    layer_norm_modulate_backward_kernel(LayerNormModulateBackwardParams params, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const LayerNormModulateParams& forward = params.forward;
  const GateResidualParams& input = forward.input;
  const Row row = this_row(input);
  const float mean = row.exists ? forward.mean[row.index] : 0.0f, rstd = row.exists ? forward.rstd[row.index] : 0.0f;
  const auto load = [&](const TokenVector&, float (&)[kWidth]) {};
  const LoadedVectors<T, 0, decltype(load)> vectors(input, row, aligned, load);

  float totals[2] = {0.0f, 0.0f};
  vectors.for_each([&](const TokenVector& at, const float (&)[kWidth]) {
    RowTerms<T> terms;
    terms.load(params, at, mean, rstd);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float g = i < at.valid ? terms.gradient(i) : 0.0f;
      totals[0] += g;
      totals[1] = i < at.valid ? fmaf(g, terms.normalised[i], totals[1]) : totals[1];
    }
  });
  row_sums(row, totals);
  const float channels = static_cast<float>(input.channels);
  const float mean_gradient = forward.rms ? 0.0f : __fdiv_rn(totals[0], channels);
  const float mean_product = __fdiv_rn(totals[1], channels);

  vectors.for_each([&](const TokenVector& at, const float (&)[kWidth]) {
    RowTerms<T> terms;
    terms.load(params, at, mean, rstd);
    float gradient[kWidth], other[kWidth];
    if (params.dsum.data != nullptr) {
      load_activation<T>(params.dsum, at, other);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) other[i] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float centred = fmaf(-terms.normalised[i], mean_product, terms.gradient(i) - mean_gradient);
      gradient[i] = fmaf(centred, rstd, other[i]);
    }
    store_activation<T>(params.dresidual, input, at, gradient);
    if (params.dscale != nullptr && forward.scale.per_token) {
      load_modulation(forward.bias, at, 0.0f, other);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        other[i] = __fmul_rn(terms.dy[i], fmaf(terms.normalised[i], terms.weight[i], other[i]));
      }
      store_gradient(params.dscale, input, at, other);
    }
    if (params.dshift != nullptr && forward.shift.per_token) store_gradient(params.dshift, input, at, terms.dy);
    if (params.dx == nullptr) return;
    load_modulation(input.gate, at, 1.0f, other);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) other[i] *= gradient[i];
    store_activation<T>(params.dx, input, at, other);
    if (params.dgate == nullptr || !input.gate.per_token) return;
    load_activation<T>(input.x, at, other);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) other[i] *= gradient[i];
    store_gradient(params.dgate, input, at, other);
  });
}

// dresidual is read back: the sum over the tokens is that of the rounded one.
template <typename T>
__global__ void __launch_bounds__(kTokenSumsThreads)
    layer_norm_modulate_sums_kernel(LayerNormModulateBackwardParams params, TokenSums sums, bool aligned) {
  constexpr int kWidth = kVectorWidth<T>;
  const LayerNormModulateParams& forward = params.forward;
  const GateResidualParams& input = forward.input;
  const bool scaled = forward.scale.per_token, gated = params.dgate != nullptr && !input.gate.per_token;
  sum_over_tokens<T, kModulationSums>(
      input, sums, aligned, [&](const TokenVector& at, float (&totals)[kModulationSums][kWidth]) {
        const int64_t row = at.sample * input.tokens + at.token;
        const float mean = forward.mean[row], rstd = forward.rstd[row];
        float gradient[kWidth], normalised[kWidth];
        load_activation<T>(params.dy, at, gradient);
        load_activation<T>(params.normalised, at, normalised);
        if (scaled) {
          float scale[kWidth];
          load_modulation(forward.scale, at, 0.0f, scale);
#pragma unroll
          for (int i = 0; i < kWidth; ++i) gradient[i] = __fmul_rn(gradient[i], 1.0f + scale[i]);
        }
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const float n = __fmul_rn(normalised[i] - mean, rstd);
          totals[kOfGradient][i] += gradient[i];
          totals[kOfProduct][i] = fmaf(gradient[i], n, totals[kOfProduct][i]);
        }
        if (!gated) return;
        float x[kWidth];
        load_activation<T>(input.x, at, x);
        load_floats(static_cast<const T*>(params.dresidual) + dense_offset(input, at), at.valid, at.aligned, gradient);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) totals[kOfGate][i] = fmaf(gradient[i], x[i], totals[kOfGate][i]);
      });
}

// Of each sample: its part of dweight and dbias, (batch, 2, channels).
struct SampleSums {
  float* data;
};

__global__ void __launch_bounds__(kTokenSumsThreads)
    layer_norm_modulate_merge_kernel(LayerNormModulateBackwardParams params, TokenSums sums, SampleSums samples) {
  const LayerNormModulateParams& forward = params.forward;
  const GateResidualParams& input = forward.input;
  const int64_t index = merged_channel();
  float totals[kModulationSums];
  if (!merge_token_sums(input, sums, index, totals)) return;
  const int64_t sample = index / input.channels, channel = index % input.channels;
  const auto value = [&](const TokenOperand& operand, float absent) {
    if (operand.data == nullptr) return absent;
    return load_element(operand.data, sample * operand.batch_stride + channel, operand.dtype);
  };
  const float gradient = totals[kOfGradient], product = totals[kOfProduct];
  if (params.dscale != nullptr && !forward.scale.per_token) {
    params.dscale[index] = fmaf(value(forward.weight, 1.0f), product, __fmul_rn(value(forward.bias, 0.0f), gradient));
  }
  if (params.dshift != nullptr && !forward.shift.per_token) params.dshift[index] = gradient;
  if (params.dgate != nullptr && !input.gate.per_token) params.dgate[index] = totals[kOfGate];
  const float factor = forward.scale.per_token ? 1.0f : 1.0f + value(forward.scale, 0.0f);
  samples.data[2 * sample * input.channels + channel] = factor * product;
  samples.data[(2 * sample + 1) * input.channels + channel] = factor * gradient;
}

constexpr int kParameterThreads = 128;

// A thread adds up one channel over the samples.
__global__ void __launch_bounds__(kParameterThreads)
    layer_norm_modulate_parameters_kernel(LayerNormModulateBackwardParams params, SampleSums samples) {
  const GateResidualParams& input = params.forward.input;
  const int64_t channel = int64_t{blockIdx.x} * kParameterThreads + threadIdx.x;
  if (channel >= input.channels) return;
  float dweight = 0.0f, dbias = 0.0f;
  for (int64_t sample = 0; sample < input.batch; ++sample) {
    dweight += samples.data[2 * sample * input.channels + channel];
    dbias += samples.data[(2 * sample + 1) * input.channels + channel];
  }
  if (params.dweight != nullptr) params.dweight[channel] = dweight;
  if (params.dbias != nullptr) params.dbias[channel] = dbias;
}

}  // namespace fastdiff::cuda
