// Deviations of the predictions of every sample, for rescaled guidance: blocks take the moments of parts of a sample,
// and whoever needs the deviation merges them in one order. A row that asks for no rescaling ends every block at once.
#pragma once

#include "cuda/moments.cuh"
#include "cuda/mutations.cuh"
#include "cuda/sample_rows.cuh"
#include "cuda/sampler_step_row.cuh"

namespace fastdiff::cuda {

// A function of a sample's size alone: its bits must not depend on the batch or the GPU.
struct DeviationParts {
  Moments* moments = nullptr;  // (batch, 2, parts): of the prediction and of the guided one; null: no rescaling
  int64_t parts = 0;
  int64_t part_elements = 0;

  __device__ __forceinline__ Moments* of(int64_t sample, int which) const {
    return moments + (2 * sample + which) * parts;
  }
  __device__ __forceinline__ float size(int64_t part, int64_t count) const {
    return static_cast<float>(min(part_elements, count - part * part_elements));
  }
};

// The moments of the first `valid` values.
template <int kWidth>
__device__ __forceinline__ Moments moments_of(const float (&values)[kWidth], int valid) {
  float sum = 0.0f, m2 = 0.0f;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum += i < valid ? values[i] : 0.0f;
  const float mean = __fdiv_rn(sum, static_cast<float>(valid));
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float deviation = i < valid ? values[i] - mean : 0.0f;
    m2 = fmaf(deviation, deviation, m2);
  }
  return {mean, m2};
}

// The moments of a thread's elements around a pivot of their sample: far from zero, means would have no digits left. As
// pivot its first element will do: if that is far from all others, it makes the deviation large.
class RunningMoments {
 public:
  __device__ __forceinline__ RunningMoments(float prediction, float uncond, float guidance)
      : guidance_(guidance), prediction_pivot_(prediction), guided_pivot_(guide(prediction, uncond, guidance)) {}

  template <int kWidth>
  __device__ __forceinline__ void add(const float (&prediction)[kWidth], const float (&uncond)[kWidth], int valid) {
    const float size = static_cast<float>(valid), weight = __fdiv_rn(size, count + size);
    float values[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = prediction[i] - prediction_pivot_;
    of_prediction = merge(of_prediction, count, moments_of(values, valid), weight);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = guide(prediction[i], uncond[i], guidance_) - guided_pivot_;
    of_guided = merge(of_guided, count, moments_of(values, valid), weight);
    count += size;
  }

  Moments of_prediction = {0.0f, 0.0f};
  Moments of_guided = {0.0f, 0.0f};
  float count = 0.0f;

 private:
  float guidance_, prediction_pivot_, guided_pivot_;
};

// A block takes a part of a sample.
template <typename P>
__global__ void __launch_bounds__(kSampleRowThreads)
    deviation_kernel(SamplerStepParams params, DeviationParts deviation, bool aligned) {
  constexpr int kWidth = kVectorWidth<P>;
  __shared__ Moments sets[2][kSampleRowThreads];
  __shared__ float counts[kSampleRowThreads];
  const StepCoefficients row = row_of(params, step_of(params));
  if (row.rescale == 0.0f) return;

  const int thread = static_cast<int>(threadIdx.x);
  const int64_t sample = blockIdx.x / deviation.parts, part = blockIdx.x % deviation.parts;
  const int64_t begin = part * deviation.part_elements, end = min(begin + deviation.part_elements, params.count);
  const P* prediction = static_cast<const P*>(params.prediction) + sample * params.count;
  const P* uncond = static_cast<const P*>(params.uncond_prediction) + sample * params.count;
  RunningMoments running(to_float(prediction[0]), to_float(uncond[0]), row.guidance);
  for (int64_t element = begin + int64_t{thread} * kWidth; element < end; element += kSampleRowThreads * kWidth) {
    const int valid = static_cast<int>(min(end - element, int64_t{kWidth}));
    float values[2][kWidth];
    load_floats(prediction + element, valid, aligned && valid == kWidth, values[0]);
    load_floats(uncond + element, valid, aligned && valid == kWidth, values[1]);
    running.add(values[0], values[1], valid);
  }
  sets[0][thread] = running.of_prediction;
  sets[1][thread] = running.of_guided;
  counts[thread] = running.count;
  if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();

  const int which = thread / kWarpSize, lane = thread % kWarpSize;
  if (which > 1) return;
  const auto get = [&](int64_t i) { return sets[which][i]; };
  const auto size = [&](int64_t i) { return counts[i]; };
  const Moments whole = merge_all(kSampleRowThreads, deviation.size(part, params.count), lane, kWarpSize, get, size);
  if (lane == 0) deviation.of(sample, which)[part] = whole;
}

// What a sample's guided prediction is multiplied by. All lanes of a warp take part.
__device__ __forceinline__ float rescale_factor(const DeviationParts& deviation, int64_t sample, int64_t count,
                                                float rescale) {
  if (deviation.moments == nullptr || rescale == 0.0f) return 1.0f;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const auto size = [&](int64_t part) { return deviation.size(part, count); };
  float m2[2];
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const Moments* parts = deviation.of(sample, which);
    const auto get = [&](int64_t part) { return parts[part]; };
    m2[which] = merge_all(deviation.parts, static_cast<float>(count), lane, kWarpSize, get, size).m2;
  }
  const float ratio = __fdiv_rn(__fsqrt_rn(m2[0]), __fsqrt_rn(m2[1]));
  return fmaf(rescale, ratio, 1.0f - rescale);
}

}  // namespace fastdiff::cuda
