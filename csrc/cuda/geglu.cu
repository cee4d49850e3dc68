#include "cuda/geglu.h"

#include "cuda/geglu.cuh"
#include "cuda/launcher.h"
#include "cuda/platform.cuh"

namespace fastdiff::cuda {
namespace {

template <typename T>
dim3 grid_of(const GegluParams& params) {
  return grid_for(params.rows * ceil_div(params.features, kVectorWidth<T>), kGegluThreads);
}

bool is_aligned(const GegluParams& params) {
  return is_aligned_to_vectors(params.x, params.dtype, {params.x_row_stride, params.features});
}

}  // namespace

const char* geglu(const GegluParams& params, void* stream) {
  if (params.rows * params.features == 0) return nullptr;
  const bool aligned = is_aligned(params) && is_aligned_to_vectors(params.y, params.dtype);
  return text_of(with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    return launch(geglu_kernel<T>, grid_of<T>(params), dim3(kGegluThreads), 0, static_cast<cudaStream_t>(stream),
                  params, aligned);
  }));
}

const char* geglu_backward(const GegluBackwardParams& params, void* stream) {
  const GegluParams& forward = params.forward;
  if (forward.rows * forward.features == 0) return nullptr;
  const bool aligned = is_aligned(forward) && is_aligned_to_vectors(params.dy, forward.dtype, {params.dy_row_stride}) &&
                       is_aligned_to_vectors(params.dx, forward.dtype);
  return text_of(with_dtype(forward.dtype, [&](auto element) {
    using T = decltype(element);
    return launch(geglu_backward_kernel<T>, grid_of<T>(forward), dim3(kGegluThreads), 0,
                  static_cast<cudaStream_t>(stream), params, aligned);
  }));
}

}  // namespace fastdiff::cuda
