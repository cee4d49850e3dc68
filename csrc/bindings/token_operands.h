// Operands of the kernels that work on one token's channels at a time.
#pragma once

#include <string>
#include <vector>

#include "bindings/tensors.h"
#include "common/gate_residual.h"

namespace fastdiff::bindings {

// Hands out tensors as the kernels read them, and keeps the copies that this takes alive.
class TokenOperands {
 public:
  TokenOperands(const char* op, const Tensor& x) : op_(op), sizes_(sizes_of(x)), dtype_(dtype_of(x, "x")) {
    STD_TORCH_CHECK(sizes_.size() == 3, op, ": x must be (batch, tokens, channels)");
  }

  // (batch, tokens, channels), of x's dtype.
  TokenOperand activation(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(sizes_of(tensor) == sizes_ && dtype_of(tensor, name) == dtype_, op_, ": ", name,
                    " must have the shape and dtype of x");
    return strided(tensor, name, tensor.dim() - 1);
  }

  // (batch, tokens or 1, channels).
  TokenOperand modulation(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == sizes_[0] && tensor.size(2) == sizes_[2] &&
                        (tensor.size(1) == 1 || tensor.size(1) == sizes_[1]),
                    op_, ": ", name, " must be (batch, tokens or 1, channels)");
    return strided(tensor, name, 2);
  }

  // (channels).
  TokenOperand parameter(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == sizes_[2], op_, ": ", name, " must be (channels)");
    return strided(tensor, name, 0);
  }

 private:
  TokenOperand strided(const Tensor& tensor, const char* name, int64_t last) {
    if (tensor.numel() > 0 && tensor.size(last) > 1 && tensor.stride(last) != 1) {
      copies_.push_back(torch::stable::contiguous(tensor));
      return strided(copies_.back(), name, last);
    }
    const auto stride = [&](int64_t dim) { return dim < last && tensor.size(dim) > 1 ? tensor.stride(dim) : 0; };
    const bool per_token = last > 1 && tensor.size(1) > 1;
    return {tensor.const_data_ptr(), dtype_of(tensor, name), stride(0), stride(1), per_token};
  }

  const char* op_;
  std::vector<int64_t> sizes_;
  DType dtype_;
  std::vector<Tensor> copies_;
};

}  // namespace fastdiff::bindings
