// The constants of one channel of one sample: everything group_norm_silu does to it after the statistics.
#pragma once

#include "common/group_norm_silu.h"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

// z = (x + time_bias - mean) * gain + offset. The mean is subtracted first, exactly or nearly so; folded into the
// offset it would cost as many digits as mean * gain is larger than z. The time bias is added first, as the statistics
// do, so that a group of one value comes out as exactly zero.
struct alignas(16) Affine {
  float time_bias;
  float mean;
  float gain;
  float offset;
};

__device__ __forceinline__ float center(const Affine& affine, float x) { return x + affine.time_bias - affine.mean; }

__device__ __forceinline__ float apply(const Affine& affine, float centered) {
  return fmaf(centered, affine.gain, affine.offset);
}

__device__ __forceinline__ float load_operand(const ChannelVector& operand, int64_t sample, int64_t channel,
                                              float absent) {
  if (operand.data == nullptr) return absent;
  return load_element(operand.data, sample * operand.batch_stride + channel, operand.dtype);
}

// dz / d xhat of a channel: weight * (1 + scale), rounded once.
__device__ __forceinline__ float load_gain(const GroupNormSiluParams& params, int64_t sample, int64_t channel) {
  const float weight = load_operand(params.weight, 0, channel, 1.0f);
  return fmaf(weight, load_operand(params.scale, sample, channel, 0.0f), weight);
}

// The constants but for the statistics: what the gain lacks is a factor of rstd. load(operand, sample, absent) reads
// one operand of the channel.
template <typename Load>
__device__ __forceinline__ Affine combine_operands(const GroupNormSiluParams& params, int64_t sample,
                                                   const Load& load) {
  const float weight = load(params.weight, 0, 1.0f), bias = load(params.bias, 0, 0.0f);
  const float scale = load(params.scale, sample, 0.0f), shift = load(params.shift, sample, 0.0f);
  const float time_bias = load(params.time_bias, sample, 0.0f);
  return {time_bias, 0.0f, fmaf(weight, scale, weight), fmaf(bias, scale, bias + shift)};
}

template <typename T>
__device__ __forceinline__ Affine load_operands_of(const GroupNormSiluParams& params, int64_t sample, int64_t channel) {
  return combine_operands(params, sample, [&](const ChannelVector& operand, int64_t row, float absent) {
    if (operand.data == nullptr) return absent;
    return to_float(static_cast<const T*>(operand.data)[row * operand.batch_stride + channel]);
  });
}

// Operands of one dtype, as they mostly are, are waited for together, and not one after the other.
__device__ __forceinline__ Affine load_operands(const GroupNormSiluParams& params, int64_t sample, int64_t channel) {
  bool uniform = true;
  for (const ChannelVector* operand : {&params.weight, &params.bias, &params.scale, &params.shift, &params.time_bias}) {
    uniform = uniform && (operand->data == nullptr || operand->dtype == params.dtype);
  }
  if (!uniform) {
    return combine_operands(params, sample, [&](const ChannelVector& operand, int64_t row, float absent) {
      return load_operand(operand, row, channel, absent);
    });
  }
  switch (params.dtype) {
    case DType::Float32:
      return load_operands_of<float>(params, sample, channel);
    case DType::BFloat16:
      return load_operands_of<__nv_bfloat16>(params, sample, channel);
    default:
      return load_operands_of<__half>(params, sample, channel);
  }
}

__device__ __forceinline__ void add_statistics(Affine& affine, float mean, float rstd) {
  affine.mean = mean;
  affine.gain *= rstd;
}

}  // namespace fastdiff::cuda
