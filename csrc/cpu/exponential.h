// Powers of two on vectors, to the accuracy that the element type T can show:
// 2^t = 2^round(t) * 2^f with f in [-1/2, 1/2] and a minimax polynomial for 2^f.
#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

constexpr float kLog2e = 1.44269504f;

// factor * 2^f for f in [-1/2, 1/2], where the factor is a constant that costs nothing; relative error below 2.5e-7
// (float32) or 8e-5 (16-bit types: under a twentieth of a bfloat16 ulp).
template <class T>
FASTDIFF_INLINE Float power_of_fraction(Float f, float factor) {
  Float p;
  if constexpr (sizeof(T) == 4) {
    p = f * (factor * 0.0013276472632f) + factor * 0.00967554134312f;
    p = p * f + factor * 0.0555071327186f;
    p = p * f + factor * 0.240221197237f;
    p = p * f + factor * 0.693146967065f;
    p = p * f + factor * 1.00000007165f;
  } else {
    p = f * (factor * 0.0551716723257f) + factor * 0.242611122351f;
    p = p * f + factor * 0.693260984692f;
    p = p * f + factor * 0.999928073572f;
  }
  return p;
}

#if defined(__AVX512F__)
FASTDIFF_INLINE Float rounded(Float t) {
  return _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#endif

// factor * 2^t where that is a normal float32.
template <class T>
FASTDIFF_INLINE Float power_of_two(Float t, float factor = 1) {
#if defined(__AVX512F__)
  const Float whole = rounded(t);
  return _mm512_scalef_ps(power_of_fraction<T>(t - whole, factor), whole);
#else
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(t) in the low bits of the sum
  const Float shifted = t + kRound;
  const Float p = power_of_fraction<T>(t - (shifted - kRound), factor);
  return (Float)((UInt)p + ((UInt)shifted << 23));
#endif
}

// 2^t for t <= 1; where it would be subnormal, that or 0; NaN for NaN.
template <class T = float>
FASTDIFF_INLINE Float power_of_two_or_zero(Float t) {
#if defined(__AVX512F__)
  // At -infinity the fraction is NaN, of which scalef makes the 0 that it should be.
  return power_of_two<T>(t);
#else
  // Adding it leaves round(t) plus the bias of the exponent in the low bits of the sum.
  constexpr float kRound = 0x1.8p23f + 127;
  const Float bounded = larger(broadcast(-127.0f), t);  // at -127 the exponent is zero bits
  const Float shifted = bounded + kRound;
  // A product, not a sum of bits: NaN stays NaN.
  return power_of_fraction<T>(bounded - (shifted - kRound), 1) * (Float)((UInt)shifted << 23);
#endif
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
