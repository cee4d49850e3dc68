#include "common/sampler_step.h"

#include <cmath>
#include <limits>
#include <vector>

#include "bindings/registration.h"
#include "bindings/tensors.h"

namespace fastdiff::bindings {
namespace {

bool lie_alike(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); d++)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// Hands out operands as arrays that lie in memory like `result`, and keeps the copies that this takes alive.
class Operands {
 public:
  explicit Operands(const Tensor& result) : result_(result) {}

  const void* take(const Tensor& operand, const char* name) {
    STD_TORCH_CHECK(sizes_of(operand) == sizes_of(result_), "sampler_step: ", name, " must have the shape of sample");
    STD_TORCH_CHECK(operand.scalar_type() == result_.scalar_type(), "sampler_step: ", name,
                    " must have the dtype of sample");
    STD_TORCH_CHECK(operand.device() == result_.device(), "sampler_step: ", name, " must be on the device of sample");
    if (lie_alike(operand, result_)) return operand.const_data_ptr();
    copies_.push_back(torch::stable::empty_like(result_));
    torch::stable::copy_(copies_.back(), operand);
    return copies_.back().const_data_ptr();
  }

 private:
  const Tensor& result_;
  std::vector<Tensor> copies_;
};

// The CPU kernel rounds to bfloat16 by an addition that not every NaN survives; this one does.
float narrow(double value) {
  return std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(value);
}

template <class Backend>
Tensor sampler_step(Tensor sample, Tensor prediction, OptionalTensor uncond_prediction, double guidance_scale,
                    std::vector<double> coefficients, std::vector<Tensor> history) {
  STD_TORCH_CHECK(history.size() <= kMaxHistory, "sampler_step: history must have at most ", kMaxHistory, " tensors");
  STD_TORCH_CHECK(coefficients.size() == 2 + history.size(),
                  "sampler_step: coefficients must have two entries more than history");
  Tensor result = torch::stable::empty_like(sample);  // dense, with sample's strides where those are
  Operands operands(result);
  SamplerStepParams p;
  p.count = result.numel();
  p.dtype = dtype_of(sample, "sample");
  p.sample = operands.take(sample, "sample");
  p.prediction = operands.take(prediction, "prediction");
  if (uncond_prediction) p.uncond_prediction = operands.take(*uncond_prediction, "uncond_prediction");
  p.history_count = static_cast<int>(history.size());
  for (size_t i = 0; i < history.size(); i++) p.history[i] = operands.take(history[i], "history");
  p.result = result.mutable_data_ptr();
  p.guidance_scale = narrow(guidance_scale);
  for (size_t i = 0; i < coefficients.size(); i++) p.coefficients[i] = narrow(coefficients[i]);
  if (p.count) Backend::sampler_step(p, sample);
  return result;
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def(
      "sampler_step(Tensor sample, Tensor prediction, Tensor? uncond_prediction, float guidance_scale, "
      "float[] coefficients, Tensor[] history) -> Tensor");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("sampler_step", TORCH_BOX(&sampler_step<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
