// How an activation (N, C, *spatial) lies in memory, and a copy where that is not something a kernel reads in place.
#pragma once

#include "bindings/tensors.h"

namespace fastdiff::bindings {

// Channels last: the channel stride is 1 and the tensor is not simply contiguous (which wins when both are true).
// fastdiff/ops/group_norm_silu.py tells torch.compile the same rule.
inline bool is_channels_last(const Tensor& x) {
  int64_t spatial = 1;
  for (int64_t d = 2; d < x.dim(); d++) spatial *= x.size(d);
  return !x.is_contiguous() && x.size(1) > 1 && spatial > 1 && x.stride(1) == 1;
}

inline std::vector<int64_t> dense_strides(const Tensor& x, bool channels_last) {
  std::vector<int64_t> strides(x.dim());
  int64_t step = 1;
  const auto place = [&](int64_t dim) {
    strides[dim] = step;
    step *= x.size(dim) > 1 ? x.size(dim) : 1;
  };
  if (channels_last) place(1);
  for (int64_t dim = x.dim() - 1; dim >= 2; dim--) place(dim);
  if (!channels_last) place(1);
  place(0);
  return strides;
}

// True when the spatial dimensions are evenly spaced, so that pixel i lies at i * step.
inline bool spatial_step(const Tensor& x, int64_t* step) {
  int64_t expected = -1;
  *step = 1;
  for (int64_t dim = x.dim() - 1; dim >= 2; dim--) {
    if (x.size(dim) == 1) continue;
    if (expected < 0) {
      *step = expected = x.stride(dim);
    } else if (x.stride(dim) != expected) {
      return false;
    }
    expected *= x.size(dim);
  }
  return true;
}

// `tensor` as a kernel can read it in the wanted layout: itself when its strides allow, else `*copy`, made here.
inline Activation activation_of(const Tensor& tensor, bool channels_last, Tensor* copy) {
  int64_t step;
  const bool even = spatial_step(tensor, &step);
  const bool readable = channels_last ? tensor.stride(1) == 1 || tensor.size(1) == 1 : step == 1;
  if (even && readable) return {tensor.const_data_ptr(), tensor.stride(0), channels_last ? step : tensor.stride(1)};
  *copy = empty_strided(sizes_of(tensor), dense_strides(tensor, channels_last), tensor.scalar_type(), tensor);
  torch::stable::copy_(*copy, tensor);
  return activation_of(*copy, channels_last, copy);
}

}  // namespace fastdiff::bindings
