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

__device__ __forceinline__ float load_time_bias(const GroupNormSiluParams& params, int64_t sample, int64_t channel) {
  return load_operand(params.time_bias, sample, channel, 0.0f);
}

// dz / d xhat of a channel: weight * (1 + scale), rounded once.
__device__ __forceinline__ float load_gain(const GroupNormSiluParams& params, int64_t sample, int64_t channel) {
  const float weight = load_operand(params.weight, 0, channel, 1.0f);
  return fmaf(weight, load_operand(params.scale, sample, channel, 0.0f), weight);
}

__device__ __forceinline__ Affine load_affine(const GroupNormSiluParams& params, int64_t sample, int64_t channel,
                                              float mean, float rstd) {
  const float bias = load_operand(params.bias, 0, channel, 0.0f);
  const float scale = load_operand(params.scale, sample, channel, 0.0f);
  const float shift = load_operand(params.shift, sample, channel, 0.0f);
  return {load_time_bias(params, sample, channel), mean, rstd * load_gain(params, sample, channel),
          fmaf(bias, scale, bias + shift)};
}

}  // namespace fastdiff::cuda
