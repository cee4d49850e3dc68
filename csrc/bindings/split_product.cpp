// Products of float32 matrices on the tile unit, for fastdiff/nn/split_products.py: only where kernels() has them.
#include "common/split_product.h"

#include <vector>

#include "bindings/matrices.h"

namespace fastdiff::bindings {
namespace {

constexpr const char* kOp = "split_product";

std::vector<int64_t> packed_sizes(const SplitShape& shape) {
  return {shape.products, shape.column_blocks(), shape.term_blocks(), kSplitBlockNumbers};
}

Tensor split_weight(Tensor weight) {
  check_tile_unit(kOp);
  check_matrix(kOp, weight, ScalarType::Float, 3, "weight");
  SplitWeightParams p;
  p.shape = {weight.size(0), weight.size(1), weight.size(2)};
  p.weight = static_cast<const float*>(weight.const_data_ptr());
  Tensor packed = empty(packed_sizes(p.shape), ScalarType::BFloat16, weight);
  p.packed = static_cast<BFloat16*>(packed.mutable_data_ptr());
  CpuBackend::split_weight(p, weight);
  return packed;
}

bool split_product(Tensor x, Tensor packed, OptionalTensor bias, Tensor y) {
  check_tile_unit(kOp);
  check_matrix(kOp, x, ScalarType::Float, 3, "x");
  check_matrix(kOp, packed, ScalarType::BFloat16, 4, "packed");
  check_matrix(kOp, y, ScalarType::Float, 3, "y");
  SplitProductParams p;
  p.shape = {x.size(0), y.size(2), x.size(2)};
  p.rows = x.size(1);
  check_sizes(kOp, y, {p.shape.products, p.rows, p.shape.columns}, "y");
  check_sizes(kOp, packed, packed_sizes(p.shape), "packed");
  p.x = static_cast<const float*>(x.const_data_ptr());
  p.packed = static_cast<const BFloat16*>(packed.const_data_ptr());
  if (bias) {
    check_matrix(kOp, *bias, ScalarType::Float, 1, "bias");
    check_sizes(kOp, *bias, {p.shape.columns}, "bias");
    p.bias = static_cast<const float*>(bias->const_data_ptr());
  }
  p.y = static_cast<float*>(y.mutable_data_ptr());
  return CpuBackend::split_product(p, x);
}

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, library) {
  library.def("split_weight(Tensor weight) -> Tensor");
  library.def("split_product(Tensor x, Tensor packed, Tensor? bias, Tensor(a!) y) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("split_weight", TORCH_BOX(&split_weight));
  library.impl("split_product", TORCH_BOX(&split_product));
}

}  // namespace
}  // namespace fastdiff::bindings
