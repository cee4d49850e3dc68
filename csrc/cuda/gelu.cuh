// The Gaussian error linear unit and its derivative in float32, to the accuracy that the element type can show; see
// common/gelu.h. Products and sums are fused by hand, so that the compiler has no choice. A NaN stays one: fminf() and
// fmaxf() would drop it.
#pragma once

#include "common/gelu.h"
#include "cuda/platform.cuh"

namespace fastdiff::cuda {

struct Gelu {
  float value;
  float derivative;
};

// exp(z), to 3 ulp for float. The fast one errs by |z| / 2 ulp, which is what rounding z * log2(e) costs.
template <typename T>
__device__ __forceinline__ float exponential(float z) {
  if constexpr (sizeof(T) == 4) {
    constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
    const float power = __fmul_rn(z, kLog2e), rest = fmaf(z, kLog2e, -power), near = exp2f(power);
    return fmaf(near * rest, kLn2, near);
  } else {
    return __expf(z);
  }
}

template <typename T>
__device__ __forceinline__ float reciprocal(float z) {
  return sizeof(T) == 4 ? __frcp_rn(z) : __fdividef(1.0f, z);
}

struct ExactGelu {
  template <typename T>
  static __device__ __forceinline__ Gelu evaluate(float x) {
    const float magnitude = fabsf(x), a = magnitude > kFarthestExactGelu ? kFarthestExactGelu : magnitude;
    const float e = exponential<T>(-0.5f * a * a), below = e * tail_over_exponential<T>(a);  // cdf(-a)
    const float cdf = x > 0.0f ? 1.0f - below : below;
    const float positive = x < 0.0f ? 0.0f : x;
    return {fmaf(-a, below, positive), fmaf((x < 0.0f ? -a : a) * kInverseSqrt2Pi, e, cdf)};
  }

 private:
  template <typename T>
  static __device__ __forceinline__ float tail_over_exponential(float a) {
    if constexpr (sizeof(T) == 4) {
      using Tail = NormalTail;
      const float t = reciprocal<T>(fmaf(Tail::kSlope, a, 1.0f));
      const float upper = fmaf(fmaf(fmaf(t, Tail::c7, Tail::c6), t, Tail::c5), t, Tail::c4);
      return t * fmaf(fmaf(fmaf(fmaf(upper, t, Tail::c3), t, Tail::c2), t, Tail::c1), t, Tail::c0);
    } else {
      using Tail = ShortNormalTail;
      const float t = reciprocal<T>(fmaf(Tail::kSlope, a, 1.0f));
      return t * fmaf(fmaf(fmaf(fmaf(t, Tail::c4, Tail::c3), t, Tail::c2), t, Tail::c1), t, Tail::c0);
    }
  }
};

struct TanhGelu {
  template <typename T>
  static __device__ __forceinline__ Gelu evaluate(float x) {
    const float above = x < -kFarthestTanhGelu ? -kFarthestTanhGelu : x;
    const float near = above > kFarthestTanhGelu ? kFarthestTanhGelu : above, square = near * near;
    const float e = exponential<T>(-near * fmaf(kTwiceCubic, square, kTwiceLinear));
    const float sigmoid = reciprocal<T>(1.0f + e);
    const float slope = near * fmaf(3.0f * kTwiceCubic, square, kTwiceLinear);
    return {above * sigmoid, sigmoid * fmaf(slope, e * sigmoid, 1.0f)};
  }
};

template <typename T>
__device__ __forceinline__ Gelu gelu(float x, bool tanh) {
  return tanh ? TanhGelu::evaluate<T>(x) : ExactGelu::evaluate<T>(x);
}

}  // namespace fastdiff::cuda
