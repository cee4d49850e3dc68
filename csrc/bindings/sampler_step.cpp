#include "common/sampler_step.h"

#include "bindings/dense.h"
#include "bindings/registration.h"

namespace fastdiff::bindings {
namespace {

// What sampler_step and sampler_step_ have in common.
struct StepArguments {
  Tensor prediction, coefficients;
  OptionalTensor step;
  int64_t step_value;
  OptionalTensor uncond_prediction;
  std::vector<Tensor> history;
  OptionalTensor seeds, limits;
};

Order order_for(const StepArguments& arguments) {
  if (arguments.seeds) return Order::C;
  return arguments.uncond_prediction || arguments.limits ? Order::Samples : Order::Dense;
}

// The arguments on the device, in tables that live as long as this does.
class Tables {
 public:
  Tables(const StepArguments& arguments, const Tensor& sample, SamplerStepParams* p) {
    const std::vector<int64_t> a_sample = {p->batch};
    p->steps = arguments.coefficients.size(0);
    p->coefficients = static_cast<const StepCoefficients*>(
        keep(checked_table(arguments.coefficients, ScalarType::Float, {p->steps, kStepColumns}, sample,
                           "sampler_step: coefficients must be (steps, 13) float32")));
    p->step_value = arguments.step_value;
    if (arguments.step)
      p->step = static_cast<const int64_t*>(
          keep(checked_table(*arguments.step, ScalarType::Long, {}, sample, "sampler_step: step must be () int64")));
    if (arguments.seeds)
      p->seeds = static_cast<const int64_t*>(keep(checked_table(*arguments.seeds, ScalarType::Long, a_sample, sample,
                                                                "sampler_step: seeds must be (batch) int64")));
    if (arguments.limits)
      p->limits = static_cast<const float*>(keep(checked_table(*arguments.limits, ScalarType::Float, a_sample, sample,
                                                               "sampler_step: limits must be (batch) float32")));
  }

 private:
  const void* keep(const Tensor& table) {
    tables_.push_back(table);
    return table.const_data_ptr();
  }

  std::vector<Tensor> tables_;
};

// From `sample` to `result`, which may be the same tensor.
template <class Backend>
void run(const StepArguments& arguments, const Tensor& sample, const Tensor& result, const OptionalTensor& model) {
  STD_TORCH_CHECK(sample.dim() > 0, "sampler_step: sample must have a batch");
  STD_TORCH_CHECK(arguments.history.size() <= kMaxHistory, "sampler_step: history must have at most ", kMaxHistory,
                  " tensors");
  SamplerStepParams p;
  p.batch = sample.size(0);
  p.count = p.batch ? sample.numel() / p.batch : 0;
  p.dtype = dtype_of(sample, "sample");
  p.prediction_dtype = dtype_of(arguments.prediction, "prediction");
  const Tables tables(arguments, sample, &p);

  DenseOperands operands(result, order_for(arguments), "sampler_step");
  const ScalarType dtype = sample.scalar_type(), prediction_dtype = arguments.prediction.scalar_type();
  if (sample.get() == result.get()) {
    p.sample = p.result = operands.update(sample, dtype, "sample");
  } else {
    p.sample = operands.read(sample, dtype, "sample");
    p.result = operands.write(result, dtype, "result");
  }
  p.prediction = operands.read(arguments.prediction, prediction_dtype, "prediction");
  if (arguments.uncond_prediction)
    p.uncond_prediction = operands.read(*arguments.uncond_prediction, prediction_dtype, "uncond_prediction");
  for (const Tensor& entry : arguments.history) p.history[p.history_count++] = operands.read(entry, dtype, "history");
  if (model) p.model = operands.write(*model, dtype, "model_out");
  if (p.batch * p.count == 0) return;
  Backend::sampler_step(p, sample);
  operands.finish();
}

template <class Backend>
std::tuple<Tensor, Tensor> sampler_step(Tensor sample, Tensor prediction, Tensor coefficients, OptionalTensor step,
                                        int64_t step_value, OptionalTensor uncond_prediction,
                                        std::vector<Tensor> history, OptionalTensor seeds, OptionalTensor limits) {
  const StepArguments arguments = {prediction,        coefficients, step,  step_value,
                                   uncond_prediction, history,      seeds, limits};
  // Dense, with sample's strides where those are.
  Tensor result = torch::stable::empty_like(sample), model = torch::stable::empty_like(sample);
  run<Backend>(arguments, sample, result, model);
  return {result, model};
}

template <class Backend>
void sampler_step_(Tensor sample, Tensor prediction, Tensor coefficients, OptionalTensor step, int64_t step_value,
                   OptionalTensor uncond_prediction, std::vector<Tensor> history, OptionalTensor seeds,
                   OptionalTensor limits, OptionalTensor model_out) {
  const StepArguments arguments = {prediction,        coefficients, step,  step_value,
                                   uncond_prediction, history,      seeds, limits};
  run<Backend>(arguments, sample, sample, model_out);
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def(
      "sampler_step(Tensor sample, Tensor prediction, Tensor coefficients, Tensor? step, int step_value, "
      "Tensor? uncond_prediction, Tensor[] history, Tensor? seeds, Tensor? limits) -> (Tensor, Tensor)");
  library.def(
      "sampler_step_(Tensor(a!) sample, Tensor prediction, Tensor coefficients, Tensor? step, int step_value, "
      "Tensor? uncond_prediction, Tensor[] history, Tensor? seeds, Tensor? limits, Tensor(b!)? model_out) -> ()");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("sampler_step", TORCH_BOX(&sampler_step<Backend>));
  library.impl("sampler_step_", TORCH_BOX(&sampler_step_<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
