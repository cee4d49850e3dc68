// From torch's stable tensors to the plain pointers and strides that kernels take.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "common/dtype.h"
#include "common/group_norm_silu.h"

namespace fastdiff::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::Float32;
    case ScalarType::BFloat16:
      return DType::BFloat16;
    case ScalarType::Half:
      return DType::Float16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                            const Tensor& like) {
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  int32_t torch_dtype;
  switch (dtype) {
    case ScalarType::Float:
      torch_dtype = aoti_torch_dtype_float32();
      break;
    case ScalarType::BFloat16:
      torch_dtype = aoti_torch_dtype_bfloat16();
      break;
    case ScalarType::Half:
      torch_dtype = aoti_torch_dtype_float16();
      break;
    case ScalarType::Long:
      torch_dtype = aoti_torch_dtype_int64();
      break;
    default:
      torch_dtype = aoti_torch_dtype_uint8();
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), torch_dtype, device_type,
                                                         like.get_device_index(), &handle));
  return Tensor(handle);
}

inline std::vector<int64_t> row_major_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return strides;
}

// Row-major, uninitialised.
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype, const Tensor& like) {
  return empty_strided(sizes, row_major_strides(sizes), dtype, like);
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

}  // namespace fastdiff::bindings
