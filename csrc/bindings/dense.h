// Tensors as dense arrays, for kernels to which the order of the dimensions does not matter as long as all operands
// have the same.
#pragma once

#include <algorithm>
#include <numeric>

#include "bindings/tensors.h"

namespace fastdiff::bindings {

// What an array of samples has to be.
enum class Order {
  Dense,    // without gaps
  Samples,  // and its samples lie one behind the other
  C,        // and so do their elements, in the order of their indices
};

// Without gaps or overlaps, whatever the order of the dimensions. The first one is the outermost if `samples`.
inline bool is_dense(const Tensor& tensor, bool samples) {
  std::vector<int64_t> dims(tensor.dim());
  std::iota(dims.begin(), dims.end(), 0);
  std::sort(dims.begin() + (samples ? 1 : 0), dims.end(),
            [&](int64_t a, int64_t b) { return tensor.stride(a) > tensor.stride(b); });
  int64_t step = 1;
  for (size_t i = dims.size(); i-- > 0;) {
    const int64_t size = tensor.size(dims[i]);
    if (size > 1 && tensor.stride(dims[i]) != step) return false;
    step *= std::max<int64_t>(size, 1);
  }
  return true;
}

inline bool has_order(const Tensor& tensor, Order order) {
  return tensor.is_contiguous() || (order != Order::C && is_dense(tensor, order == Order::Samples));
}

// The operands of a call as arrays that lie alike in memory. Those that do not are copied, and outputs copied back.
class DenseOperands {
 public:
  // All are to lie like `model`, if that has the order, or else contiguously.
  DenseOperands(const Tensor& model, Order order, const char* op) : op_(op), model_(model) {
    const auto strides = model.strides();
    strides_ = has_order(model, order) ? std::vector<int64_t>(strides.begin(), strides.end())
                                       : row_major_strides(sizes_of(model));
  }

  const void* read(const Tensor& operand, ScalarType dtype, const char* name) {
    check(operand, dtype, name);
    return lies_right(operand) ? operand.const_data_ptr() : copy_of(operand).const_data_ptr();
  }

  // An array for what finish() leaves in `output`.
  void* write(const Tensor& output, ScalarType dtype, const char* name) {
    check(output, dtype, name);
    return lies_right(output) ? output.mutable_data_ptr() : back_later(output, uninitialised(output));
  }

  // The same, of an array that is read before.
  void* update(const Tensor& tensor, ScalarType dtype, const char* name) {
    check(tensor, dtype, name);
    return lies_right(tensor) ? tensor.mutable_data_ptr() : back_later(tensor, copy_of(tensor));
  }

  void finish() {
    for (auto& [output, copy] : outputs_) torch::stable::copy_(output, copy);
  }

 private:
  struct Output {
    Tensor tensor, copy;
  };

  bool lies_right(const Tensor& tensor) const {
    for (int64_t d = 0; d < tensor.dim(); d++)
      if (tensor.size(d) > 1 && tensor.stride(d) != strides_[d]) return false;
    return true;
  }

  Tensor uninitialised(const Tensor& like) {
    return copies_.emplace_back(empty_strided(sizes_of(like), strides_, like.scalar_type(), like));
  }

  Tensor copy_of(const Tensor& operand) {
    Tensor copy = uninitialised(operand);
    torch::stable::copy_(copy, operand);
    return copy;
  }

  void* back_later(const Tensor& output, const Tensor& copy) {
    outputs_.push_back({output, copy});
    return copy.mutable_data_ptr();
  }

  void check(const Tensor& operand, ScalarType dtype, const char* name) const {
    const auto sizes = operand.sizes(), expected = model_.sizes();
    STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()), op_, ": ", name,
                    " must have the shape of the others");
    STD_TORCH_CHECK(operand.scalar_type() == dtype, op_, ": ", name, " must have the dtype of its kind");
    STD_TORCH_CHECK(operand.device() == model_.device(), op_, ": ", name, " must be on the device of the others");
  }

  const char* op_;
  const Tensor& model_;
  std::vector<int64_t> strides_;
  std::vector<Tensor> copies_;
  std::vector<Output> outputs_;
};

// A row-major vector with an entry a sample, or a row-major matrix.
inline Tensor checked_table(const Tensor& tensor, ScalarType dtype, const std::vector<int64_t>& sizes,
                            const Tensor& like, const char* what) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype && sizes_of(tensor) == sizes && tensor.device() == like.device(), what);
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace fastdiff::bindings
