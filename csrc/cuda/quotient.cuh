// Whole and fractional part of a division, in 32 bits where they suffice: a 64-bit division is a subroutine.
#pragma once

#include "cuda/platform.cuh"

namespace fastdiff::cuda {

struct Quotient {
  int64_t whole;
  int64_t rest;
};

__device__ __forceinline__ Quotient divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    const uint32_t narrow_a = static_cast<uint32_t>(a), narrow_b = static_cast<uint32_t>(b);
    return {narrow_a / narrow_b, narrow_a % narrow_b};
  }
  return {a / b, a % b};
}

}  // namespace fastdiff::cuda
