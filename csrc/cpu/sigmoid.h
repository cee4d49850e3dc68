// The logistic function on vectors, to the accuracy that the element type can show.
#pragma once

#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Where exp(-z) is a normal float32.
constexpr float kExponentBound = 87.0f;

// exp(-z) for z within +-kExponentBound, with relative error below 2e-7 (float32) or 8e-5 (16-bit types: under a
// twentieth of a bfloat16 ulp). 2^t = 2^round(t) * 2^f with f in [-1/2, 1/2] and a minimax polynomial for 2^f.

template <class T>
FASTDIFF_INLINE Float exp_negative_within_bound(Float z) {
  constexpr float kNegLog2e = -1.44269504f;
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(t) in the low bits of the sum
  const Float shifted = z * kNegLog2e + kRound;
  const Float f = z * kNegLog2e - (shifted - kRound);
  Float p;
  if constexpr (sizeof(T) == 4) {
    p = f * 0.0013276472632f + 0.00967554134312f;
    p = p * f + 0.0555071327186f;
    p = p * f + 0.240221197237f;
    p = p * f + 0.693146967065f;
    p = p * f + 1.00000007165f;
  } else {
    p = f * 0.0551716723257f + 0.242611122351f;
    p = p * f + 0.693260984692f;
    p = p * f + 0.999928073572f;
  }
  return (Float)((UInt)p + ((UInt)shifted << 23));
}

template <class T>
FASTDIFF_INLINE Float exp_negative(Float z) {
  return exp_negative_within_bound<T>(clamp(z, -kExponentBound, kExponentBound));
}

template <class T>
FASTDIFF_INLINE Float silu(Float z) {
  return z / (1.0f + exp_negative<T>(z));
}

// For `z` within +-kExponentBound.
template <class T>
FASTDIFF_INLINE Float silu_within_bound(Float z) {
  return z / (1.0f + exp_negative_within_bound<T>(z));
}

// d silu(z) / dz = s * (1 + z * (1 - s)) with s = sigmoid(z); 1 - s = exp(-z) * s keeps its digits where s is near 1.
template <class T>
FASTDIFF_INLINE Float silu_derivative(Float z) {
  const Float e = exp_negative<T>(z);
  const Float s = 1.0f / (1.0f + e);
  return s * (1.0f + z * (e * s));
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
