// sin of turns.
#pragma once

#include "common/sine.h"
#include "cuda/platform.cuh"

namespace fastdiff::cuda {

// sin(2 pi s) for |s| <= 1/4.
__device__ __forceinline__ float sine_of_quarter_turns(float s) {
  const float square = s * s;
  return s * fmaf(fmaf(fmaf(fmaf(kSine4, square, kSine3), square, kSine2), square, kSine1), square, kSine0);
}

}  // namespace fastdiff::cuda
