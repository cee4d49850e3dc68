// Scores to probabilities, at the precision of bfloat16, and these as operands of the tile unit.
#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// 2^t, by a minimax approximation of 2^f on [0, 1] with relative error 7.5e-5.
FASTDIFF_INLINE Float power_of_two_by_floor(Float t) {
  constexpr int kAboveFloor = 0x09;
  const Float f = _mm512_reduce_ps(t, kAboveFloor);
  Float p = f * 0.0780245226f + 0.226067155f;
  p = p * f + 0.695833540f;
  p = p * f + 0.999925219f;
  return _mm512_scalef_ps(p, t);  // by the floor of t
}

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
