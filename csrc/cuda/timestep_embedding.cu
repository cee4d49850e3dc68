#include "cuda/timestep_embedding.h"

#include "cuda/platform.cuh"
#include "cuda/timestep_embedding.cuh"

namespace fastdiff::cuda {
namespace {

template <typename T>
cudaError_t run(const TimestepEmbeddingParams& params, cudaStream_t stream) {
  const int64_t threads = params.count * ((params.channels + 1) / 2);
  const int64_t blocks = (threads + kTimestepEmbeddingThreads - 1) / kTimestepEmbeddingThreads;
  return launch(timestep_embedding_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kTimestepEmbeddingThreads), 0,
                stream, params);
}

cudaError_t run_for_dtype(const TimestepEmbeddingParams& params, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::Float32:
      return run<float>(params, stream);
    case DType::BFloat16:
      return run<__nv_bfloat16>(params, stream);
    default:
      return run<__half>(params, stream);
  }
}

}  // namespace

const char* timestep_embedding(const TimestepEmbeddingParams& params, void* stream) {
  if (params.count == 0) return nullptr;
  const cudaError_t error = run_for_dtype(params, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastdiff::cuda
