// Small float32 matrix products for kernels whose operands are packed and lie in the caches.
//
// The right-hand matrix is cut into panels of one to three vectors of columns, each panel stored row after row, so that
// the inner loop reads it as it lies in memory. The left-hand matrix is read one number at a time and broadcast.
#pragma once

#include "cpu/integers.h"
#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Vectors of sums that a tile keeps in registers, beside those for its operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileSums = 24;
#else
constexpr int kTileSums = 12;
#endif

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// Calls visit(Count<width>, first) for every panel of a matrix `vectors` wide: `width` vectors from the vector `first`.
// Two at a time, which loads least for what it multiplies; three once where their number is odd.
template <class Visit>
FASTDIFF_INLINE void for_each_panel(int64_t vectors, const Visit& visit) {
  int64_t first = 0;
  if (vectors == 1) return visit(Count<1>{}, first);
  if (vectors % 2) {
    visit(Count<3>{}, first);
    first = 3;
  }
  for (; first < vectors; first += 2) visit(Count<2>{}, first);
}

// A left-hand matrix, as it lies or transposed: element (row, k) is data[row * row_stride + k * depth_stride].
struct Left {
  const float* data;
  int64_t row_stride, depth_stride = 1;

  FASTDIFF_INLINE const float* row(int64_t r) const { return data + r * row_stride; }
};

// c = a * b, or c + a * b, for kRows rows of a and one panel of b. `c` is where the panel's first column goes.
template <int kRows, int kWidth, bool kAdd>
FASTDIFF_INLINE void multiply_tile(const Left& a, const float* b, int64_t depth, float* c, int64_t c_stride) {
  Float sums[kRows][kWidth] = {};
  for (int64_t k = 0; k < depth; k++) {
    Float row[kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; w++) row[w] = load(b + (k * kWidth + w) * kLanes);
#pragma GCC unroll 32
    for (int r = 0; r < kRows; r++) {
      const Float left = broadcast(a.row(r)[k * a.depth_stride]);
#pragma GCC unroll 4
      for (int w = 0; w < kWidth; w++) sums[r][w] += left * row[w];
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; w++) {
      float* target = c + r * c_stride + w * kLanes;
      store(target, kAdd ? load(target) + sums[r][w] : sums[r][w]);
    }
}

// Terms that are added one after the other; longer sums are made of these, or rounding would grow with their length.
constexpr int64_t kLongestSum = 128;

// c (rows, vectors * kLanes) = a (rows, depth) * b, or c + a * b; b is packed in panels of depth rows.
template <bool kAdd>
void multiply(const Left& a, int64_t rows, const float* b, int64_t depth, int64_t vectors, float* c, int64_t c_stride) {
  for_each_panel(vectors, [&](auto width, int64_t first) {
    constexpr int kWidth = decltype(width)::value, kRows = kTileSums / kWidth;
    const float* panel = b + first * kLanes * depth;
    const auto tile = [&](auto count, int64_t r) FASTDIFF_INLINE_LAMBDA {
      constexpr int kCount = decltype(count)::value;
      const auto part = [&](auto add, int64_t k) FASTDIFF_INLINE_LAMBDA {
        const Left left{a.row(r) + k * a.depth_stride, a.row_stride, a.depth_stride};
        multiply_tile<kCount, kWidth, decltype(add)::value>(left, panel + k * kWidth * kLanes,
                                                            minimum(kLongestSum, depth - k),
                                                            c + r * c_stride + first * kLanes, c_stride);
      };
      part(Count<kAdd>{}, 0);
      for (int64_t k = kLongestSum; k < depth; k += kLongestSum) part(Count<true>{}, k);
    };
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) tile(Count<kRows>{}, r);
    for (; r + 2 <= rows; r += 2) tile(Count<2>{}, r);
    if (r < rows) tile(Count<1>{}, r);
  });
}

// Packs the rows of `source` (rows, columns) as the rows of a right-hand matrix, its columns padded with zeros.
template <class T>
void pack_rows(const T* source, int64_t stride, int64_t rows, int64_t columns, float* packed) {
  for_each_panel(ceil_div(columns, kLanes), [&](auto width, int64_t first) {
    constexpr int kColumns = decltype(width)::value * kLanes;
    float* target = packed + first * kLanes * rows;
    const int64_t begin = first * kLanes, count = minimum(kColumns, columns - begin);
    for (int64_t r = 0; r < rows; r++, target += kColumns) {
      for (int64_t i = 0; i < count; i++) target[i] = to_float(source[r * stride + begin + i]);
      for (int64_t i = count; i < kColumns; i++) target[i] = 0;
    }
  });
}

// Packs the rows of `source` (rows, columns) as the columns of a right-hand matrix, padded with columns of zeros.
template <class T>
void pack_columns(const T* source, int64_t stride, int64_t rows, int64_t columns, float* packed) {
  for_each_panel(ceil_div(rows, kLanes), [&](auto width, int64_t first) {
    constexpr int kColumns = decltype(width)::value * kLanes;
    float* target = packed + first * kLanes * columns;
    const int64_t begin = first * kLanes, count = minimum(kColumns, rows - begin);
    for (int64_t i = 0; i < kColumns; i++)
      for (int64_t k = 0; k < columns; k++)
        target[k * kColumns + i] = i < count ? to_float(source[(begin + i) * stride + k]) : 0.0f;
  });
}

// Floats that a packed matrix of `depth` rows and `columns` columns takes.
inline int64_t packed_size(int64_t depth, int64_t columns) { return depth * ceil_div(columns, kLanes) * kLanes; }

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
