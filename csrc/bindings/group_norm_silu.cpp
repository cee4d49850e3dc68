#include "common/group_norm_silu.h"

#include <tuple>

#include "bindings/layout.h"
#include "bindings/registration.h"
#include "bindings/tensors.h"

namespace fastdiff::bindings {
namespace {

// `sizes` is {channels} or {batch, channels}.
ChannelVector channel_vector(const OptionalTensor& operand, const char* name, const std::vector<int64_t>& sizes,
                             Tensor* copy) {
  if (!operand) return {};
  STD_TORCH_CHECK(sizes_of(*operand) == sizes, "group_norm_silu: ", name, " has the wrong shape");
  const int64_t last = operand->dim() - 1;
  // An empty tensor is its own copy, whatever its strides.
  *copy = sizes.back() > 1 && operand->stride(last) != 1 ? torch::stable::contiguous(*operand) : *operand;
  return {copy->const_data_ptr(), last > 0 ? copy->stride(0) : 0, dtype_of(*copy, name)};
}

// The parameters of a call, and the copies that keep what they point to alive.
struct Call {
  GroupNormSiluParams params;
  Tensor x, weight, bias, time_bias, scale, shift;
};

void prepare(Call& call, const Tensor& x, int64_t groups, const OptionalTensor& weight, const OptionalTensor& bias,
             const OptionalTensor& time_bias, const OptionalTensor& scale, const OptionalTensor& shift, bool silu) {
  STD_TORCH_CHECK(x.dim() >= 3 && x.dim() <= 5, "group_norm_silu: x must be (N, C, *spatial) with 3 to 5 dimensions");
  STD_TORCH_CHECK(groups > 0 && x.size(1) % groups == 0, "group_norm_silu: num_groups must divide the channels of x");
  GroupNormSiluParams& p = call.params;
  p.batch = x.size(0);
  p.channels = x.size(1);
  p.spatial = 1;
  for (int64_t d = 2; d < x.dim(); d++) p.spatial *= x.size(d);
  p.groups = groups;
  p.dtype = dtype_of(x, "x");
  p.channels_last = is_channels_last(x);
  p.silu = silu;
  p.x = activation_of(x, p.channels_last, &call.x);
  p.weight = channel_vector(weight, "weight", {p.channels}, &call.weight);
  p.bias = channel_vector(bias, "bias", {p.channels}, &call.bias);
  p.time_bias = channel_vector(time_bias, "time_bias", {p.batch, p.channels}, &call.time_bias);
  p.scale = channel_vector(scale, "scale", {p.batch, p.channels}, &call.scale);
  p.shift = channel_vector(shift, "shift", {p.batch, p.channels}, &call.shift);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, int64_t num_groups, OptionalTensor weight, OptionalTensor bias,
                                           OptionalTensor time_bias, OptionalTensor scale, OptionalTensor shift,
                                           double eps, bool silu) {
  Call call;
  prepare(call, x, num_groups, weight, bias, time_bias, scale, shift, silu);
  GroupNormSiluParams& p = call.params;
  p.eps = static_cast<float>(eps);
  Tensor y = empty_strided(sizes_of(x), dense_strides(x, p.channels_last), x.scalar_type(), x);
  Tensor mean = empty({p.batch, p.groups}, ScalarType::Float, x);
  Tensor rstd = empty({p.batch, p.groups}, ScalarType::Float, x);
  p.y = y.mutable_data_ptr();
  p.mean = static_cast<float*>(mean.mutable_data_ptr());
  p.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  Backend::group_norm_silu(p, x);
  return {y, mean, rstd};
}

// `wanted`: which of dweight, dbias, dtime_bias, dscale, dshift to compute; the others come back empty.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd,
                                                                    OptionalTensor weight, OptionalTensor bias,
                                                                    OptionalTensor time_bias, OptionalTensor scale,
                                                                    OptionalTensor shift, bool silu,
                                                                    std::vector<bool> wanted) {
  STD_TORCH_CHECK(wanted.size() == 5, "group_norm_silu_backward: wanted must name five gradients");
  STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type() && sizes_of(dy) == sizes_of(x),
                  "group_norm_silu_backward: dy must have the shape and dtype of x");
  STD_TORCH_CHECK(mean.dim() == 2 && mean.is_contiguous() && rstd.is_contiguous() &&
                      mean.scalar_type() == ScalarType::Float && rstd.scalar_type() == ScalarType::Float &&
                      mean.size(0) == x.size(0) && sizes_of(rstd) == sizes_of(mean),
                  "group_norm_silu_backward: mean and rstd must be contiguous float32 (batch, groups)");
  Call call;
  prepare(call, x, mean.size(1), weight, bias, time_bias, scale, shift, silu);
  GroupNormSiluBackwardParams b;
  b.forward = call.params;
  const GroupNormSiluParams& p = b.forward;
  b.forward.mean = static_cast<float*>(mean.mutable_data_ptr());
  b.forward.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  Tensor dy_copy;
  b.dy = activation_of(dy, p.channels_last, &dy_copy);
  Tensor dx = empty_strided(sizes_of(x), dense_strides(x, p.channels_last), x.scalar_type(), x);
  b.dx = dx.mutable_data_ptr();
  const auto gradient = [&](int which, std::vector<int64_t> sizes, float** pointer) {
    Tensor target = empty(wanted[which] ? sizes : std::vector<int64_t>{0}, ScalarType::Float, x);
    if (wanted[which]) *pointer = static_cast<float*>(target.mutable_data_ptr());
    return target;
  };
  Tensor dweight = gradient(0, {p.channels}, &b.dweight);
  Tensor dbias = gradient(1, {p.channels}, &b.dbias);
  Tensor dtime_bias = gradient(2, {p.batch, p.channels}, &b.dtime_bias);
  Tensor dscale = gradient(3, {p.batch, p.channels}, &b.dscale);
  Tensor dshift = gradient(4, {p.batch, p.channels}, &b.dshift);
  Backend::group_norm_silu_backward(b, x);
  return {dx, dweight, dbias, dtime_bias, dscale, dshift};
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def(
      "group_norm_silu(Tensor x, int num_groups, Tensor? weight, Tensor? bias, Tensor? time_bias, Tensor? scale, "
      "Tensor? shift, float eps, bool silu) -> (Tensor y, Tensor mean, Tensor rstd)");
  library.def(
      "group_norm_silu_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, "
      "Tensor? time_bias, Tensor? scale, Tensor? shift, bool silu, bool[] wanted) -> (Tensor dx, Tensor dweight, "
      "Tensor dbias, Tensor dtime_bias, Tensor dscale, Tensor dshift)");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("group_norm_silu", TORCH_BOX(&forward<Backend>));
  library.impl("group_norm_silu_backward", TORCH_BOX(&backward<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
