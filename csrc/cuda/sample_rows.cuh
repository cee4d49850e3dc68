// How kernels that treat the elements of a sample alike are laid over a batch: a column of blocks a sample, and a
// thread a unit of elements. Both go round where the grid is smaller than the batch or than the units of a sample.
#pragma once

#include "cuda/platform.cuh"

namespace fastdiff::cuda {

constexpr int kSampleRowThreads = 256;

// Calls body(sample) for the samples of this block.
template <typename Body>
__device__ __forceinline__ void for_each_sample(int64_t batch, const Body& body) {
  for (int64_t sample = blockIdx.y; sample < batch; sample += gridDim.y) body(sample);
}

// Calls body(first element, valid elements) for the units of kWidth elements of this thread in a sample.
template <int kWidth, typename Body>
__device__ __forceinline__ void for_each_unit(int64_t count, const Body& body) {
  const int64_t stride = int64_t{gridDim.x} * kSampleRowThreads * kWidth;
  int64_t element = (int64_t{blockIdx.x} * kSampleRowThreads + threadIdx.x) * kWidth;
  for (; element < count; element += stride) body(element, static_cast<int>(min(count - element, int64_t{kWidth})));
}

}  // namespace fastdiff::cuda
