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

// `rows` rows of a head as dense float32.
template <class T>
void gather_rows(const T* source, int64_t stride, int64_t rows, int64_t columns, float* target) {
  for (int64_t r = 0; r < rows; r++) {
    const T* row = source + r * stride;
    int64_t d = 0;
    for (; d + kLanes <= columns; d += kLanes) store(target + r * columns + d, load_in_order(row + d));
    for (; d < columns; d++) target[r * columns + d] = to_float(row[d]);
  }
}

// `rows` rows of a head as dense pairs; the last of an odd number of columns is paired with zero.
inline void gather_rows(const BFloat16* source, int64_t stride, int64_t rows, int64_t columns, BFloat16Pair* target) {
  const int64_t pairs = ceil_div(columns, 2);
  for (int64_t r = 0; r < rows; r++) {
    target[(r + 1) * pairs - 1] = {};
    std::memcpy(target + r * pairs, source + r * stride, columns * sizeof(BFloat16));
  }
}

// Asks for the cache lines of `rows` rows, which lie too far apart for the processor to foresee.
template <int kForWriting, class T>
void prefetch_rows(const T* first, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < columns + kLine - 1; d += kLine)
      __builtin_prefetch(first + r * stride + minimum(d, columns - 1), kForWriting);
}

// Writes a float32 row, times `factor`, in the element type. `source` may be read to a whole vector.
template <class T>
void narrow_row(const float* source, int64_t columns, float factor, T* target) {
  int64_t d = 0;
  for (; d + kLanes <= columns; d += kLanes) store_in_order(target + d, load(source + d) * factor);
  if (d < columns) {
    T rest[kLanes];
    store_in_order(rest, load(source + d) * factor);
    std::memcpy(target + d, rest, (columns - d) * sizeof(T));
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
