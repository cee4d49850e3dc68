// The operands of the kernels that work on (batch, tokens, channels) and on what modulates it, a vector at a time.
// Alignment is a run-time flag of all operands together; vectors and single elements give the same bits.
#pragma once

#include "common/gate_residual.h"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

// A vector of channels of a token.
struct TokenVector {
  int64_t sample;
  int64_t token;
  int64_t channel;  // the first
  int valid;        // elements; not positive: there is none
  bool aligned;
};

__device__ __forceinline__ int64_t offset_of(const TokenOperand& operand, const TokenVector& at) {
  return at.sample * operand.batch_stride + at.token * operand.token_stride + at.channel;
}

__device__ __forceinline__ int64_t dense_offset(const GateResidualParams& params, const TokenVector& at) {
  return (at.sample * params.tokens + at.token) * params.channels + at.channel;
}

// Of an operand of dtype T.
template <typename T>
__device__ __forceinline__ void load_activation(const TokenOperand& operand, const TokenVector& at,
                                                float (&values)[kVectorWidth<T>]) {
  load_floats(static_cast<const T*>(operand.data) + offset_of(operand, at), at.valid, at.aligned, values);
}

template <typename T>
__device__ __forceinline__ void store_activation(void* dense, const GateResidualParams& params, const TokenVector& at,
                                                 const float (&values)[kVectorWidth<T>]) {
  store_floats(static_cast<T*>(dense) + dense_offset(params, at), values, at.valid, at.aligned);
}

// A row of a float32 gradient that is the token's own.
template <int kWidth>
__device__ __forceinline__ void store_gradient(float* dense, const GateResidualParams& params, const TokenVector& at,
                                               const float (&values)[kWidth]) {
  float* row = dense + dense_offset(params, at);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i < at.valid) row[i] = values[i];
  }
}

// kWidth elements from an address that is a multiple of as many elements, and of at most 16 bytes.
template <typename T, int kWidth>
__device__ __forceinline__ void load_aligned(const T* address, float (&values)[kWidth]) {
  constexpr int kPart = kWidth * sizeof(T) >= 16 ? kVectorWidth<T> : kWidth;
#pragma unroll
  for (int first = 0; first < kWidth; first += kPart) {
    if constexpr (kPart == kVectorWidth<T>) {
      float part[kPart];
      unpack<T>(ld16(address + first), part);
#pragma unroll
      for (int i = 0; i < kPart; ++i) values[first + i] = part[i];
    } else {
      const uint2 raw = *reinterpret_cast<const uint2*>(address + first);
      const float2 low = unpack_pair<T>(raw.x), high = unpack_pair<T>(raw.y);
      values[0] = low.x;
      values[1] = low.y;
      values[2] = high.x;
      values[3] = high.y;
    }
  }
}

// Of an operand that has a dtype of its own, or `absent`.
template <int kWidth>
__device__ __forceinline__ void load_modulation(const TokenOperand& operand, const TokenVector& at, float absent,
                                                float (&values)[kWidth]) {
  const int64_t offset = offset_of(operand, at);
  if (operand.data == nullptr || !at.aligned) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const bool here = operand.data != nullptr && i < at.valid;
      values[i] = here ? load_element(operand.data, offset + i, operand.dtype) : absent;
    }
    return;
  }
  switch (operand.dtype) {
    case DType::Float32:
      return load_aligned(static_cast<const float*>(operand.data) + offset, values);
    case DType::BFloat16:
      return load_aligned(static_cast<const __nv_bfloat16*>(operand.data) + offset, values);
    default:
      return load_aligned(static_cast<const __half*>(operand.data) + offset, values);
  }
}

// residual + gate * x, residual + x, or x.
template <typename T>
__device__ __forceinline__ void load_sum(const GateResidualParams& params, const TokenVector& at,
                                         float (&sum)[kVectorWidth<T>]) {
  constexpr int kWidth = kVectorWidth<T>;
  load_activation<T>(params.x, at, sum);
  if (params.residual.data == nullptr) return;
  float residual[kWidth], gate[kWidth];
  load_activation<T>(params.residual, at, residual);
  load_modulation(params.gate, at, 1.0f, gate);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum[i] = fmaf(gate[i], sum[i], residual[i]);
}

}  // namespace fastdiff::cuda
