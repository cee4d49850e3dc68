// Parameters of layer_norm_modulate, shared by the kernels and the bindings. For every token,
//
//   sum = residual + gate * x, or residual + x, or x
//   y = (sum - mean) * rstd * weight * (1 + scale) + bias * (1 + scale) + shift
//
// with the mean and variance of the token's channels, or with mean 0 and the mean square (RMS).
#pragma once

#include "common/gate_residual.h"

namespace fastdiff {

struct LayerNormModulateParams {
  GateResidualParams input;
  TokenOperand scale, shift, weight, bias;
  bool rms = false;
  float eps = 1e-6f;
  void* y = nullptr;      // dense, of the input's dtype
  float* mean = nullptr;  // (batch, tokens)
  float* rstd = nullptr;  // (batch, tokens)
};

// `forward.input.residual` is not read, nor is y.
struct LayerNormModulateBackwardParams {
  LayerNormModulateParams forward;
  TokenOperand normalised;  // what was normalised: sum or x
  TokenOperand dy;
  TokenOperand dsum;          // absent: zero
  void* dresidual = nullptr;  // dense; the gradient of what was normalised
  void* dx = nullptr;         // dense; null: there is no gate, so it is dresidual
  // Float32, null where not wanted; summed over the tokens where the operand is the same for all of them.
  float* dgate = nullptr;
  float* dscale = nullptr;
  float* dshift = nullptr;
  float* dweight = nullptr;  // (channels)
  float* dbias = nullptr;
};

}  // namespace fastdiff
