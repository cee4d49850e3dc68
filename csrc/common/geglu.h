// Parameters of geglu, shared by the kernels and the bindings: y = x[:features] * gelu(x[features:]) for every row.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff {

struct GegluParams {
  int64_t rows = 0;
  int64_t features = 0;
  DType dtype = DType::Float32;
  bool tanh = false;         // GELU by its tanh approximation
  const void* x = nullptr;   // (rows, 2 * features), last stride 1
  int64_t x_row_stride = 0;  // elements
  void* y = nullptr;         // dense (rows, features)
};

struct GegluBackwardParams {
  GegluParams forward;       // y is not read
  const void* dy = nullptr;  // (rows, features), last stride 1
  int64_t dy_row_stride = 0;
  void* dx = nullptr;  // dense (rows, 2 * features)
};

}  // namespace fastdiff
