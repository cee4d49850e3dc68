// Parameters of the two halves of a 3x3 convolution by minimal filtering, F(2x2, 3x3) (Lavin and Gray, Fast Algorithms
// for Convolutional Neural Networks, arXiv:1509.09308, section 4.1):
//
//   y = A^T ((G w G^T) . (B^T x B)) A
//
// A tile of 2x2 results comes of 4x4 pixels. These become 16 parts, which multiply the 16 parts of the weight as
// matrices of (tiles, channels): 16 products for 4 results, where the sum over 3x3 pixels takes 36.
//
// Maps are channels-last and dense. Tiles are numbered by sample, then row, then column.
#pragma once

#include <cstdint>

namespace fastdiff {

constexpr int kWinogradParts = 16;
constexpr int kWinogradChannels = 16;  // they come in multiples of this

struct WinogradTiles {
  int64_t batch = 0;
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;
  int64_t first = 0;  // tile
  int64_t count = 0;

  int64_t rows() const { return (height + 1) / 2; }
  int64_t columns() const { return (width + 1) / 2; }
};

// B^T x B of some tiles, with zeros around the map.
struct WinogradInputParams {
  WinogradTiles tiles;
  const float* x = nullptr;
  float* parts = nullptr;  // (16, count, channels)
};

// A^T (products) A + bias of some tiles.
struct WinogradOutputParams {
  WinogradTiles tiles;
  const float* products[kWinogradParts] = {};  // each (count, channels)
  const float* bias = nullptr;                 // (channels); null: none
  float* y = nullptr;
};

}  // namespace fastdiff
