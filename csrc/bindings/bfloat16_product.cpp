// Products of bfloat16 matrices on the tile unit, for fastdiff/nn/bfloat16_products.py: only where kernels() has them.
#include "common/bfloat16_product.h"

#include <vector>

#include "bindings/registration.h"

namespace fastdiff::bindings {
namespace {

void check_matrix(const Tensor& tensor, int64_t dims, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::BFloat16 && tensor.is_contiguous() && tensor.dim() == dims,
                  "bfloat16_product: ", name, " must be bfloat16 and contiguous, with ", dims, " dimensions");
}

void check_sizes(const Tensor& tensor, const std::vector<int64_t>& sizes, const char* name) {
  STD_TORCH_CHECK(sizes_of(tensor) == sizes, "bfloat16_product: ", name,
                  " must have the shape that the other arguments ask for");
}

void check_tile_unit() {
  STD_TORCH_CHECK(cpu::kernels().bfloat16_product, "bfloat16_product: ", cpu::kernels().isa, " has no tile unit");
}

std::vector<int64_t> packed_sizes(const Bfloat16Shape& shape) {
  return {shape.column_blocks(), shape.term_blocks(), kBfloat16BlockNumbers};
}

Tensor bfloat16_weight(Tensor weight) {
  check_tile_unit();
  check_matrix(weight, 2, "weight");
  Bfloat16WeightParams p;
  p.shape = {weight.size(0), weight.size(1)};
  p.weight = static_cast<const BFloat16*>(weight.const_data_ptr());
  Tensor packed = empty(packed_sizes(p.shape), ScalarType::BFloat16, weight);
  p.packed = static_cast<BFloat16*>(packed.mutable_data_ptr());
  CpuBackend::bfloat16_weight(p, weight);
  return packed;
}

void bfloat16_product(Tensor x, Tensor packed, OptionalTensor bias, bool gelu, bool tanh, Tensor y) {
  check_tile_unit();
  check_matrix(x, 2, "x");
  check_matrix(packed, 3, "packed");
  check_matrix(y, 2, "y");
  Bfloat16ProductParams p;
  p.shape = {y.size(1), x.size(1)};
  p.rows = x.size(0);
  if (gelu) p.activation = tanh ? ProductActivation::gelu_tanh : ProductActivation::gelu;
  check_sizes(y, {p.rows, p.shape.columns}, "y");
  check_sizes(packed, packed_sizes(p.shape), "packed");
  p.x = static_cast<const BFloat16*>(x.const_data_ptr());
  p.packed = static_cast<const BFloat16*>(packed.const_data_ptr());
  if (bias) {
    check_matrix(*bias, 1, "bias");
    check_sizes(*bias, {p.shape.columns}, "bias");
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
