// timestep_embedding: a thread makes a sine and its cosine. Every channel is sin(2 pi * turns), where a cosine is a
// sine a quarter of a turn ahead; whole turns are taken off in float64, which costs nothing at these sizes.
#pragma once

#include "common/timestep_embedding.h"
#include "cuda/platform.cuh"
#include "cuda/sine.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

constexpr int kTimestepEmbeddingThreads = 128;

__device__ __forceinline__ float sine_of_turns(double turns) {
  const double half_turns = rint(2.0 * turns);
  const float s = static_cast<float>(turns - 0.5 * half_turns);
  const float sine = sine_of_quarter_turns(s);
  // Half a turn more is the opposite sine.
  const bool opposite = half_turns != 2.0 * rint(0.5 * half_turns);
  return opposite ? -sine : sine;
}

template <typename T>
__global__ void __launch_bounds__(kTimestepEmbeddingThreads) timestep_embedding_kernel(TimestepEmbeddingParams params) {
  const int64_t half = (params.channels + 1) / 2;  // with the zero of an odd width
  const int64_t thread = int64_t{blockIdx.x} * kTimestepEmbeddingThreads + threadIdx.x;
  if (thread >= params.count * half) return;
  const int64_t sample = thread / half, k = thread % half, pairs = params.channels / 2;
  T* embedding = static_cast<T*>(params.embedding) + sample * params.channels;
  if (k == pairs) {
    embedding[2 * pairs] = from_float<T>(0.0f);
    return;
  }
  const double turns =
      params.timestep[sample] * (kTurnsPerRadian * params.scale * exp(params.decay * static_cast<double>(k)));
  const float sine = sine_of_turns(turns), cosine = sine_of_turns(turns + 0.25);
  embedding[k] = from_float<T>(params.cosines_first ? cosine : sine);
  embedding[pairs + k] = from_float<T>(params.cosines_first ? sine : cosine);
}

}  // namespace fastdiff::cuda
