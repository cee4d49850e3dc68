// Parameters of gate_residual, shared by the kernels and the bindings:
//
//   sum = residual + gate * x
//
// and of the same as the first step of layer_norm_modulate, where gate and residual may be absent.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff {

// (batch, tokens, channels), read with last stride 1; a stride of 0 repeats what is the same for all.
struct TokenOperand {
  const void* data = nullptr;  // null: absent
  DType dtype = DType::Float32;
  int64_t batch_stride = 0;  // elements
  int64_t token_stride = 0;
  bool per_token = false;  // each token has a gradient of its own, even where the stride is 0
};

struct GateResidualParams {
  int64_t batch = 0;
  int64_t tokens = 0;
  int64_t channels = 0;
  DType dtype = DType::Float32;  // of x, residual, sum
  TokenOperand x, residual, gate;
  void* sum = nullptr;  // dense; null: not wanted
};

// Of gate_residual. Float32 gradients are summed over the tokens where their operand is the same for all of them.
struct GateResidualBackwardParams {
  GateResidualParams forward;  // residual and sum are not read
  TokenOperand dsum;
  void* dx = nullptr;      // dense; null: there is no gate, so it is dsum
  float* dgate = nullptr;  // (batch, tokens or 1, channels); null: not wanted
};

}  // namespace fastdiff
