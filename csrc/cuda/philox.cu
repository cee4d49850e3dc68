#include "cuda/philox.h"

#include "cuda/philox.cuh"
#include "cuda/sample_rows_grid.h"

namespace fastdiff::cuda {

const char* philox(const PhiloxParams& params, const DeviceLimits& limits, void* stream) {
  if (params.batch * params.count == 0) return nullptr;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  if (params.draw == Draw::Bits) {
    const dim3 grid = sample_rows_grid(params.batch, params.count, 4, limits);
    return text_of(launch(philox_bits_kernel, grid, dim3(kSampleRowThreads), 0, cuda_stream, params));
  }
  const bool aligned = are_aligned_rows({params.result}, params.dtype, params.batch, params.count);
  return text_of(with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const dim3 grid = sample_rows_grid(params.batch, params.count, kVectorWidth<T>, limits);
    return launch(philox_numbers_kernel<T>, grid, dim3(kSampleRowThreads), 0, cuda_stream, params,
                  open_interval(params.dtype), aligned);
  }));
}

}  // namespace fastdiff::cuda
