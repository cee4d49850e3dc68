// Scores to probabilities, at the precision of bfloat16.
#pragma once

#include "cpu/amx/rounding.h"

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

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
