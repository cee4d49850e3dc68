// What the launchers of kernels on (batch, tokens, channels) share. For .cu files only.
#pragma once

#include "common/gate_residual.h"
#include "cuda/launcher.h"
#include "cuda/token_sums.cuh"

namespace fastdiff::cuda {

inline bool is_aligned_to_vectors(const TokenOperand& operand) {
  return is_aligned_to_vectors(operand.data, operand.dtype, {operand.batch_stride, operand.token_stride});
}

// Of all operands together, and of rows that follow each other.
inline bool is_aligned_to_vectors(const GateResidualParams& params, std::initializer_list<TokenOperand> operands) {
  if (!is_aligned_to_vectors(params.sum, params.dtype, {params.channels})) return false;
  for (const TokenOperand& operand : {params.x, params.residual, params.gate}) {
    if (!is_aligned_to_vectors(operand)) return false;
  }
  for (const TokenOperand& operand : operands) {
    if (!is_aligned_to_vectors(operand)) return false;
  }
  return true;
}

inline int64_t token_blocks(const GateResidualParams& params) { return ceil_div(params.tokens, kBlockTokens); }

inline int64_t partial_floats(const GateResidualParams& params, int64_t sums) {
  return params.batch * token_blocks(params) * sums * params.channels;
}

template <typename T>
dim3 token_sums_grid(const GateResidualParams& params) {
  const int64_t columns = ceil_div(params.channels, kTokenColumns * kVectorWidth<T>);
  return grid_for(params.batch * token_blocks(params) * columns, 1);
}

inline dim3 token_merge_grid(const GateResidualParams& params) {
  return grid_for(params.batch * params.channels, kTokenColumns);
}

inline dim3 token_sums_block() { return dim3(kTokenColumns, kTokenStrands); }

}  // namespace fastdiff::cuda
