// Numbers of float32 to bfloat16, as operands of the tile unit.
#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// What rounds to bfloat16, to nearest, if its lower half is cut off.
FASTDIFF_INLINE UInt ready_to_cut(Float v) { return (UInt)v + 0x8000; }

// The upper halves of both, as pairs.
FASTDIFF_INLINE UInt cut_to_pairs(UInt first, UInt second) {
  constexpr __mmask64 kLowerHalves = 0x3333333333333333;
  const __m512i upper_halves = _mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302);
  return (UInt)_mm512_mask_shuffle_epi8((__m512i)second, kLowerHalves, (__m512i)first, upper_halves);
}

// Both rounded to bfloat16, to nearest, as pairs.
FASTDIFF_INLINE UInt round_to_pairs(Float first, Float second) {
  return cut_to_pairs(ready_to_cut(first), ready_to_cut(second));
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
