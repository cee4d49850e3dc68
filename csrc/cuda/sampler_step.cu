#include "cuda/sampler_step.h"

#include "cuda/sample_rows_grid.h"
#include "cuda/sampler_step.cuh"

namespace fastdiff::cuda {
namespace {

// Parts of a sample are at least so large, and at most so many: few enough to merge on the way.
constexpr int64_t kPartElements = 8192;
constexpr int64_t kMaxParts = 256;

// Whether a row may ask for rescaling: what it says is on the device.
bool may_rescale(const SamplerStepParams& params) { return params.uncond_prediction != nullptr && params.count > 1; }

DeviationParts deviation_parts(const SamplerStepParams& params, void* workspace) {
  if (!may_rescale(params)) return {};
  DeviationParts deviation;
  deviation.moments = static_cast<Moments*>(workspace);
  // Whole rounds of a block, so that parts begin at vectors.
  const int64_t even = ceil_div(params.count, kMaxParts);
  deviation.part_elements = std::max(kPartElements, ceil_div(even, kPartElements) * kPartElements);
  deviation.parts = ceil_div(params.count, deviation.part_elements);
  return deviation;
}

// With nothing that tells samples apart, a batch is one long row.
SamplerStepParams in_longest_rows(SamplerStepParams params) {
  if (params.seeds == nullptr && params.limits == nullptr && !may_rescale(params)) {
    params.count *= params.batch;
    params.batch = 1;
  }
  return params;
}

bool is_aligned(const SamplerStepParams& p) {
  return are_aligned_rows({p.sample, p.history[0], p.history[1], p.history[2], p.history[3], p.result, p.model},
                          p.dtype, p.batch, p.count) &&
         are_aligned_rows({p.prediction, p.uncond_prediction}, p.prediction_dtype, p.batch, p.count);
}

template <typename T, typename P>
cudaError_t run(const SamplerStepParams& given, const DeviceLimits& limits, void* workspace, cudaStream_t stream) {
  const SamplerStepParams params = in_longest_rows(given);
  const DeviationParts deviation = deviation_parts(params, workspace);
  const bool aligned = is_aligned(params);
  return in_order(
      [&] {
        if (deviation.moments == nullptr) return cudaSuccess;
        return launch(deviation_kernel<P>, grid_for(params.batch * deviation.parts, 1), dim3(kSampleRowThreads), 0,
                      stream, params, deviation, aligned);
      },
      [&] {
        const dim3 grid = sample_rows_grid(params.batch, params.count, kStepWidth<T, P>, limits);
        return launch(sampler_step_kernel<T, P>, grid, dim3(kSampleRowThreads), 0, stream, params, deviation, aligned);
      });
}

}  // namespace

size_t sampler_step_workspace_bytes(const SamplerStepParams& params, const DeviceLimits&) {
  return static_cast<size_t>(params.batch * 2 * deviation_parts(params, nullptr).parts) * sizeof(Moments);
}

const char* sampler_step(const SamplerStepParams& params, const DeviceLimits& limits, void* workspace, void* stream) {
  if (params.batch * params.count == 0) return nullptr;
  return text_of(with_dtype(params.dtype, [&](auto element) {
    return with_dtype(params.prediction_dtype, [&](auto prediction) {
      return run<decltype(element), decltype(prediction)>(params, limits, workspace, static_cast<cudaStream_t>(stream));
    });
  }));
}

}  // namespace fastdiff::cuda
