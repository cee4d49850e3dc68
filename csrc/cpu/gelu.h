// The Gaussian error linear unit on vectors (arXiv:1606.08415), to the accuracy that the element type can show.
#pragma once

#include "common/gelu.h"
#include "cpu/sigmoid.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

struct Gelu {
  Float value, derivative;
};

struct ExactGelu {
  template <class T>
  static FASTDIFF_INLINE Gelu evaluate(Float x) {
    const Float above = larger(broadcast(-kFarthestExactGelu), x);
    const Float near = smaller(broadcast(kFarthestExactGelu), above), a = (Float)((UInt)near & 0x7fffffff);
    const Float e = power_of_two<T>(-0.5f * kLog2e * a * a);
    const Float below = e * polynomial<T>(a);  // cdf(-a)
    const Float cdf = x > 0 ? 1.0f - below : below;
    return {larger(Float{}, x) - a * below, cdf + near * e * kInverseSqrt2Pi};
  }

 private:
  template <class T>
  static FASTDIFF_INLINE Float polynomial(Float a) {
    Float p;
    if constexpr (sizeof(T) == 4) {
      using Tail = NormalTail;
      const Float t = quotient<T>(broadcast(1.0f), 1.0f + Tail::kSlope * a);
      p = t * Tail::c7 + Tail::c6;
      p = p * t + Tail::c5;
      p = p * t + Tail::c4;
      p = p * t + Tail::c3;
      p = p * t + Tail::c2;
      p = p * t + Tail::c1;
      p = p * t + Tail::c0;
      return p * t;
    } else {
      using Tail = ShortNormalTail;
      const Float t = quotient<T>(broadcast(1.0f), 1.0f + Tail::kSlope * a);
      p = t * Tail::c4 + Tail::c3;
      p = p * t + Tail::c2;
      p = p * t + Tail::c1;
      p = p * t + Tail::c0;
      return p * t;
    }
  }
};

struct TanhGelu {
  template <class T>
  static FASTDIFF_INLINE Gelu evaluate(Float x) {
    const Float above = larger(broadcast(-kFarthestTanhGelu), x);
    const Float near = smaller(broadcast(kFarthestTanhGelu), above);
    const Float square = near * near;
    const Float e = power_of_two<T>(near * (-kLog2e * kTwiceLinear + -kLog2e * kTwiceCubic * square));
    const Float sigmoid = quotient<T>(broadcast(1.0f), 1.0f + e);
    return {above * sigmoid, sigmoid * (1.0f + near * (e * sigmoid) * (kTwiceLinear + 3.0f * kTwiceCubic * square))};
  }
};

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
