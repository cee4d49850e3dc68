// SiLU and its derivative in float32.
#pragma once

#include "cuda/platform.cuh"

namespace fastdiff::cuda {

// The fast exponential errs by about |z| / 2 ulp, the fast division by 2 ulp. Where |z| is large the sigmoid or its
// complement is tiny, so z * sigmoid(z) stays within 2 ulp of the larger of |silu(z)| and 1.
__device__ __forceinline__ float silu(float z) { return __fdividef(z, 1.0f + __expf(-z)); }

__device__ __forceinline__ float silu_derivative(float z) {
  const float sigmoid = __fdividef(1.0f, 1.0f + __expf(-z));
  return sigmoid * fmaf(z, 1.0f - sigmoid, 1.0f);
}

}  // namespace fastdiff::cuda
