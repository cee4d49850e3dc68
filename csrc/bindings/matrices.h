// What products of matrices on the tile unit ask of their operands.
#pragma once

#include <vector>

#include "bindings/registration.h"

namespace fastdiff::bindings {

inline void check_matrix(const char* op, const Tensor& tensor, ScalarType dtype, int64_t dims, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype && tensor.is_contiguous() && tensor.dim() == dims, op, ": ", name,
                  " must be ", dtype == ScalarType::Float ? "float32" : "bfloat16", " and contiguous, with ", dims,
                  " dimensions");
}

inline void check_sizes(const char* op, const Tensor& tensor, const std::vector<int64_t>& sizes, const char* name) {
  STD_TORCH_CHECK(sizes_of(tensor) == sizes, op, ": ", name, " must have the shape that the other arguments ask for");
}

inline void check_tile_unit(const char* op) {
  STD_TORCH_CHECK(cpu::kernels().split_product, op, ": ", cpu::kernels().isa, " has no tile unit");
}

}  // namespace fastdiff::bindings
