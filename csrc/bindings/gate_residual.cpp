#include "common/gate_residual.h"

#include <tuple>
#include <vector>

#include "bindings/registration.h"
#include "bindings/token_operands.h"

namespace fastdiff::bindings {
namespace {

GateResidualParams prepare(TokenOperands& operands, const Tensor& x, const Tensor& gate) {
  GateResidualParams p;
  p.x = operands.activation(x, "x");
  p.gate = operands.modulation(gate, "gate");
  p.batch = x.size(0);
  p.tokens = x.size(1);
  p.channels = x.size(2);
  p.dtype = dtype_of(x, "x");
  return p;
}

template <class Backend>
Tensor forward(Tensor x, Tensor gate, Tensor residual) {
  TokenOperands operands("gate_residual", x);
  GateResidualParams p = prepare(operands, x, gate);
  p.residual = operands.activation(residual, "residual");
  Tensor sum = empty(sizes_of(x), x.scalar_type(), x);
  p.sum = sum.mutable_data_ptr();
  Backend::gate_residual(p, x);
  return sum;
}

template <class Backend>
std::tuple<Tensor, Tensor> backward(Tensor dsum, Tensor x, Tensor gate, bool gate_wanted) {
  TokenOperands operands("gate_residual_backward", x);
  GateResidualBackwardParams b;
  b.forward = prepare(operands, x, gate);
  b.dsum = operands.activation(dsum, "dsum");
  Tensor dx = empty(sizes_of(x), x.scalar_type(), x);
  Tensor dgate = empty(gate_wanted ? sizes_of(gate) : std::vector<int64_t>{0}, ScalarType::Float, x);
  b.dx = dx.mutable_data_ptr();
  if (gate_wanted) b.dgate = static_cast<float*>(dgate.mutable_data_ptr());
  Backend::gate_residual_backward(b, x);
  return {dx, dgate};
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def("gate_residual(Tensor x, Tensor gate, Tensor residual) -> Tensor");
  library.def(
      "gate_residual_backward(Tensor dsum, Tensor x, Tensor gate, bool gate_wanted) -> (Tensor dx, Tensor dgate)");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("gate_residual", TORCH_BOX(&forward<Backend>));
  library.impl("gate_residual_backward", TORCH_BOX(&backward<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
