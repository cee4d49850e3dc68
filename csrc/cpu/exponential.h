// exp on vectors, for the softmax of attention.
#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// exp(x) for x <= 1, with relative error below 2e-7 near 0; 0 where it would be subnormal, NaN for NaN.
// exp(x) = 2^round(t) * 2^f with t = x * log2(e), f in [-1/2, 1/2] and a minimax polynomial for 2^f.
FASTDIFF_INLINE Float exp_nonpositive(Float x) {
  constexpr float kLog2e = 1.44269504f;
  // Adding it leaves round(t) plus the bias of the exponent in the low bits of the sum.
  constexpr float kRound = 0x1.8p23f + 127;
  const Float bounded = larger(broadcast(-88.03f), x);  // round(t) = -127: an exponent of zero bits
  const Float shifted = bounded * kLog2e + kRound;
  const Float f = bounded * kLog2e - (shifted - kRound);
  Float p = f * 0.000153458124f + 0.00133999309f;
  p = p * f + 0.00961848907f;
  p = p * f + 0.0555032864f;
  p = p * f + 0.240226462f;
  p = p * f + 0.693147182f;
  p = p * f + 1.0f;
  // A product, not a sum of bits: NaN stays NaN.
  return p * (Float)((UInt)shifted << 23);
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
