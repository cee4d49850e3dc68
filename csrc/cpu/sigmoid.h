// The logistic function on vectors, to the accuracy that the element type can show.
#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

constexpr float kLog2e = 1.44269504f;

// Where exp(-z) is a normal float32.
constexpr float kExponentBound = 87.0f;

// factor * 2^t where that is a normal float32. The factor is a constant that costs nothing. With t exact, the relative
// error is below 2e-7 (float32) or 8e-5 (16-bit types: under a twentieth of a bfloat16 ulp).
// 2^t = 2^round(t) * 2^f with f in [-1/2, 1/2] and a minimax polynomial for 2^f.
template <class T>
FASTDIFF_INLINE Float power_of_two(Float t, float factor = 1) {
#if defined(__AVX512F__)
  const Float whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Float f = t - whole;
#else
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(t) in the low bits of the sum
  const Float shifted = t + kRound;
  const Float f = t - (shifted - kRound);
#endif
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
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, whole);
#else
  return (Float)((UInt)p + ((UInt)shifted << 23));
#endif
}

// numerator / denominator, to the accuracy of T, where |denominator| is at least 1.
template <class T>
FASTDIFF_INLINE Float quotient(Float numerator, Float denominator) {
#if defined(__AVX512F__)
  // A division takes longer than all the rest of a sigmoid.
  if constexpr (sizeof(T) == 2) return numerator * (Float)_mm512_rcp14_ps(denominator);
#endif
  return numerator / denominator;
}

// silu(z) from t = z * kSiluFactor: z / (1 + 2^t) = t / (kSiluFactor * (1 + 2^t)). The bits are the same with and
// without the clamp.
constexpr float kSiluFactor = -kLog2e;

template <class T>
FASTDIFF_INLINE Float silu_of_scaled(Float t) {
  const Float bounded = clamp(t, kSiluFactor * kExponentBound, -kSiluFactor * kExponentBound);
  return quotient<T>(t, power_of_two<T>(bounded, kSiluFactor) + kSiluFactor);
}

// For z within +-kExponentBound.
template <class T>
FASTDIFF_INLINE Float silu_of_scaled_within_bound(Float t) {
  return quotient<T>(t, power_of_two<T>(t, kSiluFactor) + kSiluFactor);
}

// d silu(z) / dz = s * (1 + z * (1 - s)) with s = sigmoid(z); 1 - s = exp(-z) * s keeps its digits where s is near 1.
template <class T>
FASTDIFF_INLINE Float silu_derivative(Float z) {
  const Float e = power_of_two<T>(clamp(z, -kExponentBound, kExponentBound) * -kLog2e);
  const Float s = quotient<T>(broadcast(1.0f), 1.0f + e);
  return s * (1.0f + z * (e * s));
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
