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

template <bool kAdd, class Vector>
FASTDIFF_INLINE void put_sums(float* target, Vector sums) {
  if constexpr (kAdd) {
    Vector before;
    std::memcpy(&before, target, sizeof before);
    sums += before;
  }
  std::memcpy(target, &sums, sizeof sums);
}

// c = factor * a * b, or c + factor * a * b, for kRows rows of a and one panel of b. `c` is where the panel's first
// column goes. With kHalf, the last vector of the panel has columns in its first half only.
template <int kRows, int kWidth, bool kAdd, bool kHalf, class Matrix, class E>
FASTDIFF_INLINE void multiply_tile(const Matrix& a, const E* b, int64_t depth, float factor, float* c,
                                   int64_t c_stride) {
  constexpr int kWhole = kWidth - kHalf;
  Float sums[kRows][kWidth] = {};
  HalfFloat half_sums[kRows] = {};
  for (int64_t k = 0; k < depth; k++) {
    decltype(load(b)) row[kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; w++) row[w] = load(b + (k * kWidth + w) * kLanes);
#pragma GCC unroll 32
    for (int r = 0; r < kRows; r++) {
      const auto left = broadcast(a.at(r, k));
#pragma GCC unroll 4
      for (int w = 0; w < kWhole; w++) sums[r][w] = multiply_add(left, row[w], sums[r][w]);
      if constexpr (kHalf) half_sums[r] = multiply_add(half_of(left), half_of(row[kWhole]), half_sums[r]);
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 4
    for (int w = 0; w < kWhole; w++) put_sums<kAdd>(c + r * c_stride + w * kLanes, factor * sums[r][w]);
    if constexpr (kHalf) put_sums<kAdd>(c + r * c_stride + kWhole * kLanes, factor * half_sums[r]);
  }
}

// The same over any depth, in parts of kLongestSum.
template <int kRows, int kWidth, bool kAdd, bool kHalf = false, class Matrix>
FASTDIFF_INLINE void multiply_tile_in_parts(const Matrix& a, const typename Matrix::Element* b, int64_t depth,
                                            float factor, float* c, int64_t c_stride) {
  multiply_tile<kRows, kWidth, kAdd, kHalf>(a, b, minimum(kLongestSum, depth), factor, c, c_stride);
  for (int64_t k = kLongestSum; k < depth; k += kLongestSum)
    multiply_tile<kRows, kWidth, true, kHalf>(a.from(0, k / kLongestSum), b + k * kWidth * kLanes,
                                              minimum(kLongestSum, depth - k), factor, c, c_stride);
}

// Calls visit(Count<rows>, Count<width>, row, vector) for the tiles of a matrix of `rows` rows and `vectors` vectors,
// all of one panel before the next. A tile has an even number of rows, but for the last where theirs is odd.
template <class Visit>
FASTDIFF_INLINE void for_each_tile(int64_t rows, int64_t vectors, const Visit& visit) {
  for_each_panel(vectors, [&](auto width, int64_t first) {
    constexpr int kRows = kTileSums / decltype(width)::value;
    static_assert(kRows % 2 == 0, "for those who count on it");
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) visit(Count<kRows>{}, width, r, first);
    for (; r + 2 <= rows; r += 2) visit(Count<2>{}, width, r, first);
    if (r < rows) visit(Count<1>{}, width, r, first);
  });
}

// c (rows, columns) = factor * a (rows, depth) * b, or c + that; b is packed in panels of depth rows. Of the columns
// that fill up the last vector, half are left out where they can be.
template <bool kAdd, class Matrix>
void multiply(const Matrix& a, int64_t rows, const typename Matrix::Element* b, int64_t depth, int64_t columns,
              float* c, int64_t c_stride, float factor = 1) {
  const int64_t vectors = ceil_div(columns, kLanes);
  const bool half = vectors * kLanes - columns >= kLanes / 2;
  for_each_tile(rows, vectors, [&](auto count, auto width, int64_t r, int64_t first) FASTDIFF_INLINE_LAMBDA {
    constexpr int kRows = decltype(count)::value, kWidth = decltype(width)::value;
    const auto* panel = b + first * kLanes * depth;
    float* target = c + r * c_stride + first * kLanes;
    if (kHalfVectors && half && first + kWidth == vectors) {
      multiply_tile_in_parts<kRows, kWidth, kAdd, kHalfVectors>(a.from(r, 0), panel, depth, factor, target, c_stride);
    } else {
      multiply_tile_in_parts<kRows, kWidth, kAdd>(a.from(r, 0), panel, depth, factor, target, c_stride);
    }
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

// The first `count` elements of a row and of the next, which may not be there, as one vector of a right-hand matrix.
template <class E, class T>
FASTDIFF_INLINE void pack_vector(const T* row, const T* next, int count, E* target) {
  const auto read = [&](const T* from) FASTDIFF_INLINE_LAMBDA {
    return count == kLanes ? load_in_order(from) : load_first_in_order(from, count);
  };
  if constexpr (kTerms<E> == 1) {
    store(target, read(row));
  } else {
    const UInt second = next ? (UInt)read(next) : UInt{}, pairs = ((UInt)read(row) >> 16) | second;
    std::memcpy(target, &pairs, sizeof pairs);
  }
}

// Packs the rows of `source` (rows, columns) as the rows of a right-hand matrix, its columns padded with zeros.
template <class E, class T>
void pack_rows(const T* source, int64_t stride, int64_t rows, int64_t columns, E* packed) {
  for_each_panel(ceil_div(columns, kLanes), [&](auto width, int64_t first) {
    constexpr int kWidth = decltype(width)::value;
    E* target = packed + first * kLanes * ceil_div(rows, kTerms<E>);
    for (int64_t r = 0; r < rows; r += kTerms<E>)
      for (int64_t w = first; w < first + kWidth; w++, target += kLanes) {
        const T *row = source + r * stride + w * kLanes, *next = r + 1 < rows ? row + stride : nullptr;
        pack_vector(row, next, static_cast<int>(minimum(kLanes, columns - w * kLanes)), target);
      }
  });
}

// Packs the rows of `source` (rows, columns) as the columns of a right-hand matrix, padded with columns of zeros. A
// vector of them at a time, so that their cache lines are fetched together.
template <class E, class T>
void pack_columns(const T* source, int64_t stride, int64_t rows, int64_t columns, E* packed) {
  const int64_t depth = ceil_div(columns, kTerms<E>);
  for_each_panel(ceil_div(rows, kLanes), [&](auto width, int64_t first) {
    constexpr int kWidth = decltype(width)::value;
    for (int64_t w = 0; w < kWidth; w++) {
      const int64_t begin = (first + w) * kLanes, count = minimum(kLanes, rows - begin);
      E* target = packed + first * kLanes * depth + w * kLanes;
      for (int64_t k = 0; k < depth; k++, target += kWidth * kLanes) {
        const T* element = source + begin * stride + k * kTerms<E>;
        const bool paired = (k + 1) * kTerms<E> <= columns;
        for (int64_t i = 0; i < count; i++, element += stride)
          target[i] = make_element<E>(*element, paired ? element + 1 : nullptr);
        for (int64_t i = count; i < kLanes; i++) target[i] = E{};
      }
    }
  });
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
