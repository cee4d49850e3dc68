#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Of 2 * kBlock vectors, each two become one: what is left of the first in its lower half, of the second in its upper.
template <int kBlock>
FASTDIFF_INLINE void add_neighbours(Float (&sums)[kLanes]) {
  constexpr std::make_index_sequence<kLanes> lanes{};
#pragma GCC unroll 8
  for (int i = 0; i < kBlock; i++) {
    const Float a = sums[2 * i], b = sums[2 * i + 1];
    sums[i] = alternate_blocks<kBlock, 0>(a, b, lanes) + alternate_blocks<kBlock, kBlock>(a, b, lanes);
  }
  if constexpr (kBlock > 1) add_neighbours<kBlock / 2>(sums);
}

// The sum of the lanes of each vector, in the lane of its number; the vectors are lost.
FASTDIFF_INLINE Float sums_of_lanes(Float (&vectors)[kLanes]) {
  add_neighbours<kLanes / 2>(vectors);
  return vectors[0];
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
