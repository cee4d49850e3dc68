#include "cuda/add_noise.h"

#include "cuda/add_noise.cuh"
#include "cuda/sample_rows_grid.h"

namespace fastdiff::cuda {

const char* add_noise(const AddNoiseParams& params, const DeviceLimits& limits, void* stream) {
  if (params.batch * params.count == 0) return nullptr;
  const bool aligned = are_aligned_rows({params.clean, params.noise, params.noisy, params.target}, params.dtype,
                                        params.batch, params.count);
  return text_of(with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const dim3 grid = sample_rows_grid(params.batch, params.count, kVectorWidth<T>, limits);
    return launch(add_noise_kernel<T>, grid, dim3(kSampleRowThreads), 0, static_cast<cudaStream_t>(stream), params,
                  aligned);
  }));
}

}  // namespace fastdiff::cuda
