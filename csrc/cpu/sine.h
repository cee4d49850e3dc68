// sin on vectors of turns.
#pragma once

#include "common/sine.h"
#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// sin(2 pi s) for |s| <= 1/4.
FASTDIFF_INLINE Float sine_of_quarter_turns(Float s) {
  const Float square = s * s;
  Float p = square * kSine4 + kSine3;
  p = p * square + kSine2;
  p = p * square + kSine1;
  p = p * square + kSine0;
  return p * s;
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
