// What the forward and backward CPU kernels of attention share: how queries and keys are cut into blocks, and how the
// elements of a head are brought into float32.
#pragma once

#include <cmath>
#include <cstring>

#include "common/attention.h"
#include "cpu/element_type.h"
#include "cpu/exponential.h"
#include "cpu/integers.h"
#include "cpu/matrix_tile.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

constexpr int64_t kQueryBlock = 2 * kTileSums;  // whole tiles of every width
constexpr int64_t kKeyBlock = 160;              // whole vectors; the scores of a block fit the L1 cache
static_assert(kKeyBlock % (2 * kLanes) == 0, "a full block is cut into panels of two vectors");

inline int64_t lanes_of(int64_t columns) { return ceil_div(columns, kLanes) * kLanes; }

template <class T>
const T* head_of(const AttentionOperand& operand, int64_t sample, int64_t head) {
  return static_cast<const T*>(operand.data) + sample * operand.batch_stride + head * operand.head_stride;
}

// Lengths come from the user: whatever they say, no key is read that is not there.
inline int64_t keys_of(const AttentionParams& p, int64_t sample) {
  return p.kv_lengths ? minimum(maximum(p.kv_lengths[sample], 0), p.kv_length) : p.kv_length;
}

// Up to kRows rows of a head as the left-hand matrix of a product.
template <class E, int64_t kRows>
class RowBlock {
  // An odd number of cache lines, so that the rows spread over the sets of the L1 cache.
  static constexpr int64_t kRowStride = kLongestSum + 16, kPartStride = kRows * kRowStride;

 public:
  explicit RowBlock(int64_t depth) : elements_(ceil_div(depth, kLongestSum) * kPartStride) {}

  Left<E, kRowStride, 1, kPartStride> left() const { return {elements_}; }
  const E* part_of_row(int64_t row, int64_t part) const { return elements_ + part * kPartStride + row * kRowStride; }

  template <class T>
  void gather(const T* source, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t begin = 0; begin < columns; begin += kTerms<E> * kLongestSum) {
      E* part = elements_ + begin / (kTerms<E> * kLongestSum) * kPartStride;
      const int64_t count = minimum(kTerms<E> * kLongestSum, columns - begin);
      for (int64_t r = 0; r < rows; r++) copy(source + r * stride + begin, count, part + r * kRowStride);
    }
  }

 private:
  template <class T>
  static void copy(const T* row, int64_t count, float* target) {
    int64_t d = 0;
    for (; d + kLanes <= count; d += kLanes) store(target + d, load_in_order(row + d));
    for (; d < count; d++) target[d] = to_float(row[d]);
  }
  // The last of an odd number of columns is paired with zero.
  static void copy(const BFloat16* row, int64_t count, BFloat16Pair* target) {
    constexpr int64_t kChunk = 8;  // a copy of a length known only here would be a call
    int64_t d = 0;
    for (; d + kChunk <= count; d += kChunk) std::memcpy(target + d / 2, row + d, kChunk * sizeof(BFloat16));
    for (; d < count; d += 2) target[d / 2] = {row[d], d + 1 < count ? row[d + 1] : BFloat16{}};
  }

  Scratch<E> elements_;
};

// Where a row of a dense tensor in the shape of the output is.
inline int64_t dense_row(const AttentionParams& p, int64_t sample, int64_t head, int64_t token) {
  return ((sample * p.query_length + token) * p.heads + head) * p.head_dim;
}

// Asks for the cache lines of `rows` rows, which lie too far apart for the processor to foresee.
template <class T>
void prefetch_rows(const T* first, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < columns + kLine - 1; d += kLine) prefetch(first + r * stride + minimum(d, columns - 1));
}

// Writes a float32 row, times `factor`, in the element type. `source` may be read to a whole vector.
template <class T>
void narrow_row(const float* source, int64_t columns, float factor, T* target) {
  if (columns < kLanes) return store_first_in_order(target, load(source) * factor, static_cast<int>(columns));
  const int64_t last = columns - kLanes;  // the last vector may overlap the one before: a part of one takes longer
  for (int64_t d = 0; d < last; d += kLanes) store_in_order(target + d, load(source + d) * factor);
  store_in_order(target + last, load(source + last) * factor);
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
