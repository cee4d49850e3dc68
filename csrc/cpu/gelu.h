// The Gaussian error linear unit on vectors (arXiv:1606.08415), to the accuracy that the element type can show.
#pragma once

#include "cpu/sigmoid.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

struct Gelu {
  Float value, derivative;
};

// x * cdf(x) with the normal distribution: cdf(-a) = exp(-a^2 / 2) * P(t) for a >= 0, t = 1 / (1 + c * a), with a
// minimax polynomial P of relative error 1.3e-7 (float32) or 5e-5 (16-bit types). So x * cdf(x) = max(x, 0) - a *
// cdf(-a).
struct ExactGelu {
  template <class T>
  static FASTDIFF_INLINE Gelu evaluate(Float x) {
    constexpr float kInverseSqrt2Pi = 0.398942280f;
    constexpr float kFarthest = 13.19f;  // where exp(-a^2 / 2) reaches the end of its bound
    const Float a = smaller((Float)((UInt)x & 0x7fffffff), broadcast(kFarthest));
    const Float e = exp_negative_within_bound<T>(0.5f * a * a);
    const Float below = e * polynomial<T>(a);  // cdf(-a)
    const Float cdf = x > 0 ? 1.0f - below : below;
    return {larger(Float{}, x) - a * below, cdf + x * e * kInverseSqrt2Pi};
  }

 private:
  template <class T>
  static FASTDIFF_INLINE Float polynomial(Float a) {
    Float p;
    if constexpr (sizeof(T) == 4) {
      const Float t = 1.0f / (1.0f + 0.3f * a);
      p = t * 0.03603611127f - 0.1587127948f;
      p = p * t + 0.2089631515f;
      p = p * t - 0.05609452826f;
      p = p * t + 0.1298426867f;
      p = p * t + 0.09952328921f;
      p = p * t + 0.1208168553f;
      p = p * t + 0.119625168f;
      return p * t;
    } else {
      const Float t = 1.0f / (1.0f + 0.25f * a);
      p = t * 0.2415929241f - 0.1038699f;
      p = p * t + 0.1803892315f;
      p = p * t + 0.0805189986f;
      p = p * t + 0.1013487115f;
      return p * t;
    }
  }
};

// 0.5 * x * (1 + tanh(u)) = x * sigmoid(2 * u) with u = sqrt(2 / pi) * (x + 0.044715 * x^3).
struct TanhGelu {
  template <class T>
  static FASTDIFF_INLINE Gelu evaluate(Float x) {
    constexpr float kTwice = 1.59576912f, kCubic = kTwice * 0.044715f;
    constexpr float kFarthest = 9.98f;  // where 2 * u reaches the end of its bound
    const Float above = larger(broadcast(-kFarthest), x), near = smaller(broadcast(kFarthest), above);
    const Float square = near * near;
    const Float e = exp_negative_within_bound<T>(near * (kTwice + kCubic * square)), sigmoid = 1.0f / (1.0f + e);
    return {above * sigmoid, sigmoid * (1.0f + near * (e * sigmoid) * (kTwice + 3.0f * kCubic * square))};
  }
};

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
