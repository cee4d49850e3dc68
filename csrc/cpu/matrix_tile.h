// Small matrix products, summed in float32, for kernels whose operands are packed and lie in the caches.
//
// The operands are of one element type E: float32 numbers, or pairs of bfloat16 that are neighbours in the direction of
// summation (the depth, which counts elements: half as many when they are pairs).
//
// The right-hand matrix is cut into panels of one to three vectors of columns, each panel stored row after row, so that
// the inner loop reads it as it lies in memory. The left-hand matrix is read one element at a time and broadcast.
#pragma once

#include "cpu/bfloat16_pairs.h"
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

// Terms that are added one after the other; longer sums are made of these, or rounding would grow with their length.
constexpr int64_t kLongestSum = 128;

// A left-hand matrix, as it lies or transposed, in parts of kLongestSum columns: element (row, k) of a part is
// data[row * kRowStride + k * kDepthStride]. Strides are constants, or the inner loop would run out of registers for
// addresses.
template <class E, int64_t kRowStride, int64_t kDepthStride = 1, int64_t kPartStride = kLongestSum * kDepthStride>
struct Left {
  using Element = E;
  const E* data;

  FASTDIFF_INLINE E at(int64_t row, int64_t k) const { return data[row * kRowStride + k * kDepthStride]; }
  FASTDIFF_INLINE Left from(int64_t row, int64_t part) const { return {data + row * kRowStride + part * kPartStride}; }
};

// c = factor * a * b, or c + factor * a * b, for kRows rows of a and one panel of b. `c` is where the panel's first
// column goes.
template <int kRows, int kWidth, bool kAdd, class Matrix, class E>
FASTDIFF_INLINE void multiply_tile(const Matrix& a, const E* b, int64_t depth, float factor, float* c,
                                   int64_t c_stride) {
  Float sums[kRows][kWidth] = {};
  for (int64_t k = 0; k < depth; k++) {
    decltype(load(b)) row[kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; w++) row[w] = load(b + (k * kWidth + w) * kLanes);
#pragma GCC unroll 32
    for (int r = 0; r < kRows; r++) {
      const auto left = broadcast(a.at(r, k));
#pragma GCC unroll 4
      for (int w = 0; w < kWidth; w++) sums[r][w] = multiply_add(left, row[w], sums[r][w]);
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; w++) {
      float* target = c + r * c_stride + w * kLanes;
      store(target, kAdd ? load(target) + factor * sums[r][w] : factor * sums[r][w]);
    }
}

// c (rows, vectors * kLanes) = factor * a (rows, depth) * b, or c + that; b is packed in panels of depth rows.
template <bool kAdd, class Matrix>
void multiply(const Matrix& a, int64_t rows, const typename Matrix::Element* b, int64_t depth, int64_t vectors,
              float* c, int64_t c_stride, float factor = 1) {
  for_each_panel(vectors, [&](auto width, int64_t first) {
    constexpr int kWidth = decltype(width)::value, kRows = kTileSums / kWidth;
    const auto* panel = b + first * kLanes * depth;
    const auto tile = [&](auto count, int64_t r) FASTDIFF_INLINE_LAMBDA {
      constexpr int kCount = decltype(count)::value;
      const auto part = [&](auto add, int64_t k) FASTDIFF_INLINE_LAMBDA {
        multiply_tile<kCount, kWidth, decltype(add)::value>(a.from(r, k / kLongestSum), panel + k * kWidth * kLanes,
                                                            minimum(kLongestSum, depth - k), factor,
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

// One element of two neighbours, of which the second may not be there: then it is zero.
template <class E, class T>
FASTDIFF_INLINE E make_element(T first, const T* second) {
  if constexpr (kTerms<E> == 2) {
    return {first, second ? *second : T{}};
  } else {
    return to_float(first);
  }
}

// Packs the rows of `source` (rows, columns) as the rows of a right-hand matrix, its columns padded with zeros.
template <class E, class T>
void pack_rows(const T* source, int64_t stride, int64_t rows, int64_t columns, E* packed) {
  for_each_panel(ceil_div(columns, kLanes), [&](auto width, int64_t first) {
    constexpr int kColumns = decltype(width)::value * kLanes;
    E* target = packed + first * kLanes * ceil_div(rows, kTerms<E>);
    const int64_t begin = first * kLanes, count = minimum(kColumns, columns - begin);
    for (int64_t r = 0; r < rows; r += kTerms<E>, target += kColumns) {
      const T *row = source + r * stride + begin, *next = r + 1 < rows ? row + stride : nullptr;
      for (int64_t i = 0; i < count; i++) target[i] = make_element<E>(row[i], next ? next + i : nullptr);
      for (int64_t i = count; i < kColumns; i++) target[i] = E{};
    }
  });
}

// Packs the rows of `source` (rows, columns) as the columns of a right-hand matrix, padded with columns of zeros.
template <class E, class T>
void pack_columns(const T* source, int64_t stride, int64_t rows, int64_t columns, E* packed) {
  const int64_t depth = ceil_div(columns, kTerms<E>);
  for_each_panel(ceil_div(rows, kLanes), [&](auto width, int64_t first) {
    constexpr int kColumns = decltype(width)::value * kLanes;
    E* target = packed + first * kLanes * depth;
    const int64_t begin = first * kLanes, count = minimum(kColumns, rows - begin);
    for (int64_t i = 0; i < kColumns; i++) {
      const T* row = source + (begin + i) * stride;
      for (int64_t k = 0; k < depth; k++) {
        const int64_t at = k * kTerms<E>;
        target[k * kColumns + i] =
            i < count ? make_element<E>(row[at], at + 1 < columns ? row + at + 1 : nullptr) : E{};
      }
    }
  });
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
