// Parameters of group_norm_silu, shared by the CPU kernel, the CUDA kernel and the bindings.
//
//   u = x + time_bias[n, c]
//   z = ((u - mean[n, g]) * rstd[n, g] * weight[c] + bias[c]) * (1 + scale[n, c]) + shift[n, c]
//   y = silu(z), or z when `silu` is false
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff {

// A vector with one entry a channel (stride 1), the same for all samples (batch_stride 0) or one row a sample.
// `data == nullptr` means the operand is absent.
struct ChannelVector {
  const void* data = nullptr;
  int64_t batch_stride = 0;  // elements
  DType dtype = DType::Float32;
};

// An activation seen as (batch, channels, spatial). Channels first: spatial stride 1, `stride` from channel to
// channel. Channels last: channel stride 1, `stride` from pixel to pixel. All strides in elements.
struct Activation {
  const void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t stride = 0;
};

struct GroupNormSiluParams {
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t spatial = 0;  // product of the spatial sizes
  int64_t groups = 0;
  DType dtype = DType::Float32;  // of x and y
  bool channels_last = false;
  bool silu = true;
  float eps = 1e-5f;

  Activation x;
  void* y = nullptr;      // dense, in the layout of x
  float* mean = nullptr;  // (batch, groups), of u
  float* rstd = nullptr;  // (batch, groups)

  ChannelVector weight;     // (channels)
  ChannelVector bias;       // (channels)
  ChannelVector time_bias;  // (batch, channels)
  ChannelVector scale;      // (batch, channels)
  ChannelVector shift;      // (batch, channels)
};

// `forward` carries x, the operands, and mean and rstd as the forward pass left them; its y is not read.
struct GroupNormSiluBackwardParams {
  GroupNormSiluParams forward;
  Activation dy;       // in the layout of x
  void* dx = nullptr;  // dense, in the layout of x

  // Float32, dense. A null pointer means that gradient is not wanted.
  float* dweight = nullptr;     // (channels)
  float* dbias = nullptr;       // (channels)
  float* dtime_bias = nullptr;  // (batch, channels)
  float* dscale = nullptr;      // (batch, channels)
  float* dshift = nullptr;      // (batch, channels)
};

}  // namespace fastdiff
