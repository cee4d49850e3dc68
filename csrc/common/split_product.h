// Parameters of products of float32 matrices that a unit for bfloat16 works out, with the accuracy of float32 (Henry,
// Tang, Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations,
// arXiv:1904.06376):
//
//   y[p] = x[p] weight[p]^T + bias        x (products, rows, terms), weight (products, columns, terms)
//
// A number of float32, with its 24 bits, is the sum of three of bfloat16, with 8 bits each: x = high + middle + low. Of
// the nine products of such parts the six largest are summed; the others are smaller than what float32 rounds away.
#pragma once

#include <cstdint>

#include "common/half_bits.h"

namespace fastdiff {

constexpr int64_t kSplitParts = 3;
constexpr int64_t kSplitBlock = 32;  // columns and terms of a packed block of the weight; those missing are zero
constexpr int64_t kSplitBlockNumbers = kSplitParts * kSplitBlock * kSplitBlock;

struct SplitShape {
  int64_t products = 0;
  int64_t columns = 0;
  int64_t terms = 0;

  int64_t column_blocks() const { return (columns + kSplitBlock - 1) / kSplitBlock; }
  int64_t term_blocks() const { return (terms + kSplitBlock - 1) / kSplitBlock; }
};

struct SplitWeightParams {
  SplitShape shape;
  const float* weight = nullptr;
  BFloat16* packed = nullptr;  // (products, column blocks, term blocks, numbers of a block)
};

struct SplitProductParams {
  SplitShape shape;
  int64_t rows = 0;
  const float* x = nullptr;
  const BFloat16* packed = nullptr;
  const float* bias = nullptr;  // (columns); null: none
  float* y = nullptr;           // (products, rows, columns)
};

}  // namespace fastdiff
