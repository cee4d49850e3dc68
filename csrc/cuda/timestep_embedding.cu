#include "cuda/timestep_embedding.h"

#include "cuda/launcher.h"
#include "cuda/platform.cuh"
#include "cuda/timestep_embedding.cuh"

namespace fastdiff::cuda {
namespace {

template <typename T>
cudaError_t run(const TimestepEmbeddingParams& params, cudaStream_t stream) {
  const int64_t threads = params.count * ((params.channels + 1) / 2);
  return launch(timestep_embedding_kernel<T>, grid_for(threads, kTimestepEmbeddingThreads),
                dim3(kTimestepEmbeddingThreads), 0, stream, params);
}

}  // namespace

const char* timestep_embedding(const TimestepEmbeddingParams& params, void* stream) {
  if (params.count == 0) return nullptr;
  return text_of(with_dtype(
      params.dtype, [&](auto element) { return run<decltype(element)>(params, static_cast<cudaStream_t>(stream)); }));
}

}  // namespace fastdiff::cuda
