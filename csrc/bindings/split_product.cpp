// Products of float32 matrices on the tile unit, for fastdiff/nn/split_products.py: only where kernels() has them.
#include "common/split_product.h"

#include <vector>

#include "bindings/registration.h"

namespace fastdiff::bindings {
namespace {

void check_matrices(const Tensor& tensor, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype && tensor.is_contiguous(), "split_product: ", name, " must be ",
                  dtype == ScalarType::Float ? "float32" : "bfloat16", " and contiguous");
}

void check_sizes(const Tensor& tensor, const std::vector<int64_t>& sizes, const char* name) {
  STD_TORCH_CHECK(sizes_of(tensor) == sizes, "split_product: ", name,
                  " must have the shape that the other arguments ask for");
}

void check_tile_unit() {
  STD_TORCH_CHECK(cpu::kernels().split_product, "split_product: ", cpu::kernels().isa, " has no tile unit");
}

std::vector<int64_t> packed_sizes(const SplitShape& shape) {
  return {shape.products, shape.column_blocks(), shape.term_blocks(), kSplitBlockNumbers};
}

Tensor split_weight(Tensor weight) {
  check_tile_unit();
  check_matrices(weight, ScalarType::Float, "weight");
  STD_TORCH_CHECK(weight.dim() == 3, "split_product: weight must be (products, columns, terms)");
  SplitWeightParams p;
  p.shape = {weight.size(0), weight.size(1), weight.size(2)};
  p.weight = static_cast<const float*>(weight.const_data_ptr());
  Tensor packed = empty(packed_sizes(p.shape), ScalarType::BFloat16, weight);
  p.packed = static_cast<BFloat16*>(packed.mutable_data_ptr());
  CpuBackend::split_weight(p, weight);
  return packed;
}

bool split_product(Tensor x, Tensor packed, OptionalTensor bias, Tensor y) {
  check_tile_unit();
  check_matrices(x, ScalarType::Float, "x");
  check_matrices(packed, ScalarType::BFloat16, "packed");
  check_matrices(y, ScalarType::Float, "y");
  STD_TORCH_CHECK(x.dim() == 3 && y.dim() == 3,
                  "split_product: x must be (products, rows, terms), y (products, rows, "
                  "columns)");
  SplitProductParams p;
  p.shape = {x.size(0), y.size(2), x.size(2)};
  p.rows = x.size(1);
  check_sizes(y, {p.shape.products, p.rows, p.shape.columns}, "y");
  check_sizes(packed, packed_sizes(p.shape), "packed");
  p.x = static_cast<const float*>(x.const_data_ptr());
  p.packed = static_cast<const BFloat16*>(packed.const_data_ptr());
  if (bias) {
    check_matrices(*bias, ScalarType::Float, "bias");
    check_sizes(*bias, {p.shape.columns}, "bias");
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
