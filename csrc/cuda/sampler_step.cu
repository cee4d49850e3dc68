#include "cuda/sampler_step.cuh"

#include <algorithm>
#include <cstdint>

#include "cuda/platform.cuh"
#include "cuda/sampler_step.h"

namespace fastdiff::cuda {
namespace {

// Blocks for every multiprocessor: what fits at once, twice, so that an early end leaves nothing idle.
constexpr int64_t kBlocksPerMultiprocessor = 2 * kSamplerStepBlocks;

bool is_aligned(const SamplerStepParams& params) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(params.sample) | reinterpret_cast<uintptr_t>(params.prediction) |
                   reinterpret_cast<uintptr_t>(params.uncond_prediction) | reinterpret_cast<uintptr_t>(params.result);
  for (int k = 0; k < params.history_count; ++k) bits |= reinterpret_cast<uintptr_t>(params.history[k]);
  return bits % 16 == 0;
}

template <typename T>
cudaError_t run(const SamplerStepParams& params, const DeviceLimits& limits, cudaStream_t stream) {
  const int64_t vectors = is_aligned(params) ? params.count / kVectorWidth<T> : 0;
  const int64_t items = std::max(vectors, params.count - vectors * kVectorWidth<T>);
  const int64_t blocks =
      std::min((items + kSamplerStepThreads - 1) / kSamplerStepThreads, limits.sm_count * kBlocksPerMultiprocessor);
  return launch(sampler_step_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kSamplerStepThreads), 0, stream,
                params, vectors);
}

cudaError_t run_for_dtype(const SamplerStepParams& params, const DeviceLimits& limits, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::Float32:
      return run<float>(params, limits, stream);
    case DType::BFloat16:
      return run<__nv_bfloat16>(params, limits, stream);
    default:
      return run<__half>(params, limits, stream);
  }
}

}  // namespace

const char* sampler_step(const SamplerStepParams& params, const DeviceLimits& limits, void* stream) {
  if (params.count == 0) return nullptr;
  const cudaError_t error = run_for_dtype(params, limits, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastdiff::cuda
