#include "common/geglu.h"

#include "bindings/registration.h"
#include "bindings/tensors.h"

namespace fastdiff::bindings {
namespace {

// A matrix whose rows are dense.
Tensor rows_of(const Tensor& tensor) {
  return tensor.size(1) > 1 && tensor.stride(1) != 1 ? torch::stable::contiguous(tensor) : tensor;
}

GegluParams prepare(const Tensor& x, bool tanh) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) % 2 == 0, "geglu: x must be (rows, 2 * features)");
  GegluParams p;
  p.rows = x.size(0);
  p.features = x.size(1) / 2;
  p.dtype = dtype_of(x, "x");
  p.tanh = tanh;
  p.x = x.const_data_ptr();
  p.x_row_stride = x.stride(0);
  return p;
}

template <class Backend>
Tensor forward(Tensor x, bool tanh) {
  const Tensor operand = rows_of(x);
  GegluParams p = prepare(operand, tanh);
  Tensor y = empty({p.rows, p.features}, x.scalar_type(), x);
  p.y = y.mutable_data_ptr();
  Backend::geglu(p, x);
  return y;
}

template <class Backend>
Tensor backward(Tensor dy, Tensor x, bool tanh) {
  const Tensor operand = rows_of(x), gradient = rows_of(dy);
  GegluBackwardParams b;
  b.forward = prepare(operand, tanh);
  const std::vector<int64_t> sizes = {b.forward.rows, b.forward.features};
  STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type() && sizes_of(dy) == sizes,
                  "geglu_backward: dy must be (rows, features), of x's dtype");
  b.dy = gradient.const_data_ptr();
  b.dy_row_stride = gradient.stride(0);
  Tensor dx = empty(sizes_of(x), x.scalar_type(), x);
  b.dx = dx.mutable_data_ptr();
  Backend::geglu_backward(b, x);
  return dx;
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def("geglu(Tensor x, bool tanh) -> Tensor");
  library.def("geglu_backward(Tensor dy, Tensor x, bool tanh) -> Tensor");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("geglu", TORCH_BOX(&forward<Backend>));
  library.impl("geglu_backward", TORCH_BOX(&backward<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
