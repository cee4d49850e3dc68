// Parameters of a product of bfloat16 matrices on a unit for such:
//
//   y = activation(x weight^T + bias)        x (rows, terms), weight (columns, terms)
//
// with sums in float32, rounded once, after the activation.
#pragma once

#include <cstdint>

#include "common/half_bits.h"

namespace fastdiff {

constexpr int64_t kBFloat16Block = 32;  // columns and terms of a packed block of the weight; those missing are zero
constexpr int64_t kBFloat16BlockNumbers = kBFloat16Block * kBFloat16Block;

struct BFloat16Shape {
  int64_t columns = 0;
  int64_t terms = 0;

  int64_t column_blocks() const { return (columns + kBFloat16Block - 1) / kBFloat16Block; }
  int64_t term_blocks() const { return (terms + kBFloat16Block - 1) / kBFloat16Block; }
};

struct BFloat16WeightParams {
  BFloat16Shape shape;
  const BFloat16* weight = nullptr;
  BFloat16* packed = nullptr;  // (column blocks, term blocks, numbers of a block)
};

enum class ProductActivation { none, gelu, gelu_tanh };

struct BFloat16ProductParams {
  BFloat16Shape shape;
  int64_t rows = 0;
  const BFloat16* x = nullptr;
  const BFloat16* packed = nullptr;
  const BFloat16* bias = nullptr;  // (columns); null: none
  ProductActivation activation = ProductActivation::none;
  BFloat16* y = nullptr;  // (rows, columns)
};

}  // namespace fastdiff
