#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// With m in [0.75, 1.5) and s = (m - 1) / (m + 1): log(m) = 2 (s + s^3/3 + s^5/5 + ...). Absolute error below 2e-7
// beside the rounding of the result; NaN and infinity stay, and 0 becomes -infinity.
FASTDIFF_INLINE Float logarithm_to_base_2(Float v) {
  constexpr float kTwiceLog2e = 2.88539008f;
  const Float m = _mm512_getmant_ps(v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
  const Float exponent = _mm512_getexp_ps(v / m);
  const Float s = (m - 1) / (m + 1), square = s * s;
  Float p = square * (kTwiceLog2e / 9) + kTwiceLog2e / 7;
  p = p * square + kTwiceLog2e / 5;
  p = p * square + kTwiceLog2e / 3;
  p = p * square + kTwiceLog2e;
  return exponent + p * s;
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
