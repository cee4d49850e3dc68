// What the launchers share. For .cu files only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "common/dtype.h"
#include "cuda/platform.cuh"

namespace fastdiff::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A grid with at least one thread for each of `count` items. One that no GPU can launch fails instead of wrapping
// round.
inline dim3 grid_for(int64_t count, int64_t threads) {
  return dim3(static_cast<unsigned>(std::min<int64_t>(ceil_div(count, threads), UINT32_MAX)));
}

// Whether data and every stride, in elements, are multiples of 16 bytes.
inline bool is_aligned_to_vectors(const void* data, DType dtype, std::initializer_list<int64_t> strides = {}) {
  int64_t bits = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data));
  for (int64_t stride : strides) bits |= stride * static_cast<int64_t>(size_of(dtype));
  return bits % 16 == 0;
}

// Calls run(T{}).
template <typename Run>
cudaError_t with_dtype(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::Float32:
      return run(float{});
    case DType::BFloat16:
      return run(__nv_bfloat16{});
    default:
      return run(__half{});
  }
}

// Calls the launches one after the other until one fails.
template <typename... Launches>
cudaError_t in_order(const Launches&... launches) {
  cudaError_t error = cudaSuccess;
  static_cast<void>((((error = launches()) == cudaSuccess) && ...));
  return error;
}

// What a launcher returns: null, or the text of an error.
inline const char* text_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace fastdiff::cuda
