// The logistic function on vectors, to the accuracy that the element type can show.
#pragma once

#include "cpu/exponential.h"
#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Where exp(-z) is a normal float32.
constexpr float kExponentBound = 87.0f;

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
