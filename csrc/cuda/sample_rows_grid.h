// The grid of sample_rows.cuh, and what its rows are in memory. For .cu files only.
#pragma once

#include <algorithm>

#include "cuda/device_limits.h"
#include "cuda/launcher.h"
#include "cuda/sample_rows.cuh"

namespace fastdiff::cuda {

// A wave of blocks and another, so that an early end leaves nothing idle, each of 8 to a multiprocessor.
constexpr int64_t kSampleRowBlocksPerMultiprocessor = 16;
constexpr int64_t kMaxSampleColumns = 1024;  // fills every GPU, and is far below what a grid may have in y

inline dim3 sample_rows_grid(int64_t batch, int64_t count, int64_t width, const DeviceLimits& limits) {
  const int64_t rows = std::min(batch, kMaxSampleColumns);
  const int64_t most = std::max<int64_t>(1, limits.sm_count * kSampleRowBlocksPerMultiprocessor / rows);
  const int64_t blocks = std::min(ceil_div(count, kSampleRowThreads * width), most);
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows));
}

// Whether every sample of dense arrays begins at a multiple of 16 bytes. Null arrays do.
inline bool are_aligned_rows(std::initializer_list<const void*> arrays, DType dtype, int64_t batch, int64_t count) {
  return std::all_of(arrays.begin(), arrays.end(),
                     [&](const void* array) { return is_aligned_to_vectors(array, dtype, {batch > 1 ? count : 0}); });
}

}  // namespace fastdiff::cuda
