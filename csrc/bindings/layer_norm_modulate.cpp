#include "common/layer_norm_modulate.h"

#include <tuple>
#include <vector>

#include "bindings/registration.h"
#include "bindings/token_operands.h"

namespace fastdiff::bindings {
namespace {

LayerNormModulateParams prepare(TokenOperands& operands, const Tensor& x, const Tensor& scale,
                                const OptionalTensor& gate, const OptionalTensor& weight, const OptionalTensor& bias,
                                bool rms) {
  LayerNormModulateParams p;
  p.input.batch = x.size(0);
  p.input.tokens = x.size(1);
  p.input.channels = x.size(2);
  p.input.dtype = dtype_of(x, "x");
  p.input.x = operands.activation(x, "x");
  p.scale = operands.modulation(scale, "scale");
  p.rms = rms;
  if (gate) p.input.gate = operands.modulation(*gate, "gate");
  if (weight) p.weight = operands.parameter(*weight, "weight");
  if (bias) p.bias = operands.parameter(*bias, "bias");
  return p;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor x, Tensor scale, Tensor shift, OptionalTensor gate,
                                                   OptionalTensor residual, OptionalTensor weight, OptionalTensor bias,
                                                   double eps, bool rms) {
  TokenOperands operands("layer_norm_modulate", x);
  LayerNormModulateParams p = prepare(operands, x, scale, gate, weight, bias, rms);
  STD_TORCH_CHECK(sizes_of(shift) == sizes_of(scale), "layer_norm_modulate: shift must have the shape of scale");
  STD_TORCH_CHECK(residual || !gate, "layer_norm_modulate: gate needs a residual");
  p.shift = operands.modulation(shift, "shift");
  p.eps = static_cast<float>(eps);
  Tensor y = empty(sizes_of(x), x.scalar_type(), x);
  Tensor sum = empty(residual ? sizes_of(x) : std::vector<int64_t>{0}, x.scalar_type(), x);
  Tensor mean = empty({p.input.batch, p.input.tokens}, ScalarType::Float, x);
  Tensor rstd = empty({p.input.batch, p.input.tokens}, ScalarType::Float, x);
  if (residual) {
    p.input.residual = operands.activation(*residual, "residual");
    p.input.sum = sum.mutable_data_ptr();
  }
  p.y = y.mutable_data_ptr();
  p.mean = static_cast<float*>(mean.mutable_data_ptr());
  p.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  Backend::layer_norm_modulate(p, x);
  return {y, sum, mean, rstd};
}

// `sum` is what was normalised, where that is not x.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor dy, OptionalTensor dsum, Tensor x, Tensor scale, OptionalTensor gate, OptionalTensor sum,
    OptionalTensor weight, OptionalTensor bias, Tensor mean, Tensor rstd, bool rms, std::vector<bool> wanted) {
  STD_TORCH_CHECK(wanted.size() == 5,
                  "layer_norm_modulate_backward: wanted must tell of gate, scale, shift, weight and bias");
  TokenOperands operands("layer_norm_modulate_backward", x);
  LayerNormModulateBackwardParams b;
  b.forward = prepare(operands, x, scale, gate, weight, bias, rms);
  b.forward.shift = b.forward.scale;  // only whether it is per token
  const std::vector<int64_t> rows = {b.forward.input.batch, b.forward.input.tokens};
  for (const Tensor* statistic : {&mean, &rstd})
    STD_TORCH_CHECK(
        statistic->scalar_type() == ScalarType::Float && sizes_of(*statistic) == rows && statistic->is_contiguous(),
        "layer_norm_modulate_backward: mean and rstd must be contiguous float32 (batch, tokens)");
  b.forward.mean = static_cast<float*>(mean.mutable_data_ptr());
  b.forward.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  b.normalised = sum ? operands.activation(*sum, "sum") : b.forward.input.x;
  b.dy = operands.activation(dy, "dy");
  if (dsum) b.dsum = operands.activation(*dsum, "dsum");

  Tensor dresidual = empty(sizes_of(x), x.scalar_type(), x);
  Tensor dx = empty(gate ? sizes_of(x) : std::vector<int64_t>{0}, x.scalar_type(), x);
  b.dresidual = dresidual.mutable_data_ptr();
  if (gate) b.dx = dx.mutable_data_ptr();
  const auto gradient = [&](size_t index, const Tensor* like, float** data) {
    const bool here = wanted[index] && like;
    Tensor tensor = empty(here ? sizes_of(*like) : std::vector<int64_t>{0}, ScalarType::Float, x);
    if (here) *data = static_cast<float*>(tensor.mutable_data_ptr());
    return tensor;
  };
  Tensor dgate = gradient(0, gate ? &*gate : nullptr, &b.dgate);
  Tensor dscale = gradient(1, &scale, &b.dscale);
  Tensor dshift = gradient(2, &scale, &b.dshift);
  Tensor dweight = gradient(3, weight ? &*weight : nullptr, &b.dweight);
  Tensor dbias = gradient(4, bias ? &*bias : nullptr, &b.dbias);
  Backend::layer_norm_modulate_backward(b, x);
  return {dresidual, dx, dgate, dscale, dshift, dweight, dbias};
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def(
      "layer_norm_modulate(Tensor x, Tensor scale, Tensor shift, Tensor? gate, Tensor? residual, Tensor? weight, "
      "Tensor? bias, float eps, bool rms) -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)");
  library.def(
      "layer_norm_modulate_backward(Tensor dy, Tensor? dsum, Tensor x, Tensor scale, Tensor? gate, Tensor? sum, "
      "Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, bool rms, bool[] wanted) -> (Tensor dresidual, "
      "Tensor dx, Tensor dgate, Tensor dscale, Tensor dshift, Tensor dweight, Tensor dbias)");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("layer_norm_modulate", TORCH_BOX(&forward<Backend>));
  library.impl("layer_norm_modulate_backward", TORCH_BOX(&backward<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
