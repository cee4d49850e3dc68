// Products of bfloat16 matrices on the tile unit, for fastdiff/nn/bfloat16_products.py: only where kernels() has them.
#include "common/bfloat16_product.h"

#include <vector>

#include "bindings/matrices.h"

namespace fastdiff::bindings {
namespace {

constexpr const char* kOp = "bfloat16_product";

std::vector<int64_t> packed_sizes(const BFloat16Shape& shape) {
  return {shape.column_blocks(), shape.term_blocks(), kBFloat16BlockNumbers};
}

Tensor bfloat16_weight(Tensor weight) {
  check_tile_unit(kOp);
  check_matrix(kOp, weight, ScalarType::BFloat16, 2, "weight");
  BFloat16WeightParams p;
  p.shape = {weight.size(0), weight.size(1)};
  p.weight = static_cast<const BFloat16*>(weight.const_data_ptr());
  Tensor packed = empty(packed_sizes(p.shape), ScalarType::BFloat16, weight);
  p.packed = static_cast<BFloat16*>(packed.mutable_data_ptr());
  CpuBackend::bfloat16_weight(p, weight);
  return packed;
}

void bfloat16_product(Tensor x, Tensor packed, OptionalTensor bias, bool gelu, bool tanh, Tensor y) {
  check_tile_unit(kOp);
  check_matrix(kOp, x, ScalarType::BFloat16, 2, "x");
  check_matrix(kOp, packed, ScalarType::BFloat16, 3, "packed");
  check_matrix(kOp, y, ScalarType::BFloat16, 2, "y");
  BFloat16ProductParams p;
  p.shape = {y.size(1), x.size(1)};
  p.rows = x.size(0);
  if (gelu) p.activation = tanh ? ProductActivation::gelu_tanh : ProductActivation::gelu;
  check_sizes(kOp, y, {p.rows, p.shape.columns}, "y");
  check_sizes(kOp, packed, packed_sizes(p.shape), "packed");
  p.x = static_cast<const BFloat16*>(x.const_data_ptr());
  p.packed = static_cast<const BFloat16*>(packed.const_data_ptr());
  if (bias) {
    check_matrix(kOp, *bias, ScalarType::BFloat16, 1, "bias");
    check_sizes(kOp, *bias, {p.shape.columns}, "bias");
    p.bias = static_cast<const BFloat16*>(bias->const_data_ptr());
  }
  p.y = static_cast<BFloat16*>(y.mutable_data_ptr());
  CpuBackend::bfloat16_product(p, x);
}

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, library) {
  library.def("bfloat16_weight(Tensor weight) -> Tensor");
  library.def("bfloat16_product(Tensor x, Tensor packed, Tensor? bias, bool gelu, bool tanh, Tensor(a!) y) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("bfloat16_weight", TORCH_BOX(&bfloat16_weight));
  library.impl("bfloat16_product", TORCH_BOX(&bfloat16_product));
}

}  // namespace
}  // namespace fastdiff::bindings
