#include "common/philox.h"

#include "bindings/dense.h"
#include "bindings/registration.h"

namespace fastdiff::bindings {
namespace {

// `kind` is a Draw.
template <class Backend>
Tensor philox(std::vector<int64_t> shape, Tensor seeds, int64_t offset, int64_t kind, ScalarType dtype) {
  STD_TORCH_CHECK(!shape.empty(), "philox: shape must have a batch");
  STD_TORCH_CHECK(kind >= 0 && kind <= 2, "philox: kind must be 0, 1 or 2");
  PhiloxParams p;
  p.batch = shape[0];
  p.count = 1;
  for (size_t i = 1; i < shape.size(); i++) p.count *= shape[i];
  p.draw = static_cast<Draw>(kind);
  p.offset = static_cast<uint64_t>(offset);
  const Tensor table = checked_table(seeds, ScalarType::Long, {p.batch}, seeds, "philox: seeds must be (batch) int64");
  p.seeds = static_cast<const int64_t*>(table.const_data_ptr());
  STD_TORCH_CHECK(p.draw != Draw::Bits || dtype == ScalarType::Long, "philox: bits must be int64");
  Tensor result = empty(shape, dtype, seeds);
  if (p.draw != Draw::Bits) p.dtype = dtype_of(result, "dtype");
  p.result = result.mutable_data_ptr();
  if (p.batch * p.count > 0) Backend::philox(p, seeds);
  return result;
}

void define(torch::stable::detail::StableLibrary& library) {
  library.def("philox(SymInt[] shape, Tensor seeds, SymInt offset, int kind, ScalarType dtype) -> Tensor");
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("philox", TORCH_BOX(&philox<Backend>));
}

}  // namespace

FASTDIFF_REGISTER(define, implement)

}  // namespace fastdiff::bindings
