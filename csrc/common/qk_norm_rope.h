// Parameters of qk_norm_rope, shared by the CPU kernel, the CUDA kernel and the bindings. For every head of a token,
//
//   z = x * weight / sqrt(mean(x^2) + eps)
//   y[i] = z[i] * cos[i] - z[j] * sin[i],  y[j] = z[j] * cos[j] + z[i] * sin[j]  for every pair (i, j)
//
// The pairs lie in the first rotary_dim elements: (2k, 2k + 1) interleaved, else (k, k + rotary_dim / 2). The elements
// after those, and all of the first text_tokens tokens, are y = z. Row t of cos and sin belongs to token
// text_tokens + t.
#pragma once

#include <cstdint>

#include "common/attention.h"
#include "common/dtype.h"

namespace fastdiff {

// (tokens - text_tokens, rotary_dim), the same for all samples (batch_stride 0) or one for each. The last stride is 1.
struct RotaryTable {
  const float* data = nullptr;
  int64_t batch_stride = 0;  // elements
  int64_t token_stride = 0;
};

// The queries or the keys.
struct NormRopeHeads {
  int64_t heads = 0;
  AttentionOperand x;            // (batch, tokens, heads, head_dim)
  const void* weight = nullptr;  // (head_dim), stride 1; null: ones
  DType weight_dtype = DType::Float32;
  void* y = nullptr;  // dense (batch, tokens, heads, head_dim)
};

struct QkNormRopeParams {
  int64_t batch = 0;
  int64_t tokens = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // even, at most head_dim
  int64_t text_tokens = 0;
  DType dtype = DType::Float32;  // of x and y
  bool interleaved = true;
  float eps = 1e-6f;
  RotaryTable cos, sin;
  NormRopeHeads query, key;
};

// Of the queries or the keys.
struct NormRopeGradients {
  AttentionOperand dy;       // (batch, tokens, heads, head_dim)
  void* dx = nullptr;        // dense
  float* dweight = nullptr;  // (head_dim); null: not wanted
};

// `forward` carries the operands; its outputs are not read.
struct QkNormRopeBackwardParams {
  QkNormRopeParams forward;
  NormRopeGradients query, key;
};

}  // namespace fastdiff
