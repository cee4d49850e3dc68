// Parameters of attention, shared by the CPU kernels, the CUDA kernels and the bindings.
//
//   scores[b, h, i, j] = scale * sum_d query[b, i, h, d] * key[b, j, h / (heads / kv_heads), d],  j < kv_lengths[b]
//   output[b, i, h, :] = sum_j softmax_j(scores[b, h, i, :])[j] * value[b, j, h / (heads / kv_heads), :]
//
// A sample with no keys at all (kv_lengths[b] == 0) has output 0 and logsumexp -infinity.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff {

// A tensor (batch, tokens, heads, head_dim) whose last stride is 1. Strides in elements.
struct AttentionOperand {
  const void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

struct AttentionParams {
  int64_t batch = 0;
  int64_t heads = 0;     // of query and output
  int64_t kv_heads = 0;  // of key and value; divides heads
  int64_t query_length = 0;
  int64_t kv_length = 0;
  int64_t head_dim = 0;
  DType dtype = DType::Float32;  // of query, key, value and output
  float scale = 1.0f;

  AttentionOperand query;               // (batch, query_length, heads, head_dim)
  AttentionOperand key;                 // (batch, kv_length, kv_heads, head_dim)
  AttentionOperand value;               // (batch, kv_length, kv_heads, head_dim)
  const int32_t* kv_lengths = nullptr;  // (batch), each 0 to kv_length; null: all kv_length

  void* output = nullptr;      // dense (batch, query_length, heads, head_dim)
  float* logsumexp = nullptr;  // dense (batch, heads, query_length), natural logarithm; null: not wanted
};

// `forward` carries the operands, and output and logsumexp as the forward pass left them.
struct AttentionBackwardParams {
  AttentionParams forward;
  AttentionOperand doutput;  // (batch, query_length, heads, head_dim)
  // Dense, in the shape and dtype of query, key and value.
  void* dquery = nullptr;
  void* dkey = nullptr;
  void* dvalue = nullptr;
};

}  // namespace fastdiff
