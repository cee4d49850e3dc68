#include "cuda/sampler_step.cuh"

#include <algorithm>
#include <cstdint>

#include "cuda/launcher.h"
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
  const int64_t blocks = std::min(ceil_div(items, kSamplerStepThreads), limits.sm_count * kBlocksPerMultiprocessor);
  return launch(sampler_step_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kSamplerStepThreads), 0, stream,
                params, vectors);
}

}  // namespace

const char* sampler_step(const SamplerStepParams& params, const DeviceLimits& limits, void* stream) {
  if (params.count == 0) return nullptr;
  return text_of(with_dtype(params.dtype, [&](auto element) {
    return run<decltype(element)>(params, limits, static_cast<cudaStream_t>(stream));
  }));
}

}  // namespace fastdiff::cuda
