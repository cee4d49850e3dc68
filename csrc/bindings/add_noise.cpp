#include "common/add_noise.h"

#include "bindings/dense.h"
#include "bindings/registration.h"

namespace fastdiff::bindings {
namespace {

template <class Backend>
std::tuple<Tensor, Tensor> add_noise(Tensor clean, Tensor noise, Tensor alpha, Tensor sigma, Tensor target_clean,
                                     Tensor target_noise) {
  STD_TORCH_CHECK(clean.dim() > 0, "add_noise: clean must have a batch");
  const ScalarType dtype = clean.scalar_type(), wide = alpha.scalar_type();
  STD_TORCH_CHECK(wide == ScalarType::Float || wide == ScalarType::Double,
                  "add_noise: the coefficients must be float32 or float64");
  AddNoiseParams p;
  p.batch = clean.size(0);
  p.count = p.batch ? clean.numel() / p.batch : 0;
  p.dtype = dtype_of(clean, "clean");
  p.wide_factors = wide == ScalarType::Double;
  std::vector<Tensor> tables;
  const auto table = [&](const Tensor& factors) {
    tables.push_back(checked_table(factors, wide, {p.batch}, clean,
                                   "add_noise: the coefficients must be (batch) of one dtype, on clean's device"));
    return tables.back().const_data_ptr();
  };
  p.alpha = table(alpha);
  p.sigma = table(sigma);
  p.target_clean = table(target_clean);
  p.target_noise = table(target_noise);

  Tensor noisy = torch::stable::empty_like(clean), target = torch::stable::empty_like(clean);
  DenseOperands operands(noisy, Order::Samples, "add_noise");
  p.clean = operands.read(clean, dtype, "clean");
  p.noise = operands.read(noise, dtype, "noise");
  p.noisy = operands.write(noisy, dtype, "noisy");
  p.target = operands.write(target, dtype, "target");
  if (p.batch * p.count > 0) {
    Backend::add_noise(p, clean);
    operands.finish();
  }
  return {noisy, target};
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def(
      "add_noise(Tensor clean, Tensor noise, Tensor alpha, Tensor sigma, Tensor target_clean, Tensor target_noise) "
      "-> (Tensor, Tensor)");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("add_noise", TORCH_BOX(&add_noise<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
