// Where a team works: the vectors of one unit (group_norm_silu_plan.h) in memory.
#pragma once

#include "common/group_norm_silu.h"
#include "cuda/group_norm_silu_plan.h"
#include "cuda/mutations.cuh"
#include "cuda/platform.cuh"
#include "cuda/quotient.cuh"
#include "cuda/team.cuh"
#include "cuda/vector.cuh"

namespace fastdiff::cuda {

static_assert(kChannelsLastLanes == kTeamRows);

// The vectors of one lane: `count` of them, `vector_step` apart. Those of a channels-first unit lie on along space,
// so that the last may be cut short; those of a channels-last unit all hold the same channels.
struct Unit {
  int64_t sample;
  int64_t channel;  // the first of the vector
  int64_t part;
  int64_t position;  // of this lane's first vector in space
  int count;
  int limit;    // elements that exist, counted from the lane's first vector
  int advance;  // elements of `limit` between this lane's vectors

  template <typename T>
  __device__ __forceinline__ int valid(int vector) const {
    return min(kVectorWidth<T>, limit - vector * advance);
  }
};

// Elements between an activation's channels (channels first) or pixels (channels last), and between samples.
struct Strides {
  int64_t batch;
  int64_t inner;
};

template <bool kChannelsLast>
__device__ __forceinline__ Strides dense_strides(const GroupNormSiluParams& params) {
  return {params.channels * params.spatial, kChannelsLast ? params.channels : params.spatial};
}

// Where a lane's vectors lie in one activation.
struct Cursor {
  int64_t start;
  int64_t step;
};

template <typename T, bool kChannelsLast>
__device__ __forceinline__ Cursor cursor(const Unit& unit, const Strides& strides, int lanes) {
  const int64_t sample = unit.sample * strides.batch;
  if constexpr (kChannelsLast) {
    return {sample + unit.position * strides.inner + unit.channel, kTeamRows * strides.inner};
  } else {
    return {sample + unit.channel * strides.inner + unit.position, int64_t{lanes} * kVectorWidth<T>};
  }
}

// Spatial positions of a part; the last one may be short.
__device__ __forceinline__ int part_length(const GroupNormSiluTiling& tiling, int64_t spatial, int64_t part) {
  return static_cast<int>(min(tiling.part_size, spatial - part * tiling.part_size));
}

// Units of a range of channels of one sample.
template <typename T, bool kChannelsLast>
__device__ __forceinline__ int64_t unit_count(const GroupNormSiluTiling& tiling, int64_t channels) {
  const int64_t columns = kChannelsLast ? (channels + kVectorWidth<T> - 1) / kVectorWidth<T> : channels;
  return columns * tiling.parts;
}

// Steps of the given size that begin within a length; none where it is negative.
__device__ __forceinline__ int count_steps(int length, int step) {
  constexpr int kError = planted<Mutation::OffByOneLoad> ? 1 : 0;
  return max(0, (length + step - 1 + kError) / step);
}

// The unit number `index` of the channels [first_channel, first_channel + channels). A lane that is not `live` gets a
// unit without vectors. Channels first numbers the parts of a channel, channels last the columns of a part, one after
// the other: adjacent teams touch adjacent memory.
template <typename T, bool kChannelsLast>
__device__ __forceinline__ Unit locate(const GroupNormSiluParams& params, const GroupNormSiluTiling& tiling,
                                       int64_t sample, int64_t first_channel, int64_t channels, int64_t index,
                                       int member, bool live) {
  constexpr int kWidth = kVectorWidth<T>;
  Unit unit;
  unit.sample = sample;
  if constexpr (kChannelsLast) {
    const Quotient quotient = divide(index, (channels + kWidth - 1) / kWidth);
    unit.part = quotient.whole;
    unit.channel = first_channel + quotient.rest * kWidth;
    unit.position = unit.part * tiling.part_size + member;
    const int pixels = live ? part_length(tiling, params.spatial, unit.part) - member : 0;
    unit.count = count_steps(pixels, kTeamRows);
    unit.limit = static_cast<int>(min(int64_t{kWidth}, params.channels - unit.channel));
    unit.advance = 0;
  } else {
    const Quotient quotient = divide(index, tiling.parts);
    unit.channel = first_channel + quotient.whole;
    unit.part = quotient.rest;
    unit.position = unit.part * tiling.part_size + member * kWidth;
    unit.advance = tiling.lanes * kWidth;
    unit.limit = live ? part_length(tiling, params.spatial, unit.part) - member * kWidth : 0;
    unit.count = count_steps(unit.limit, unit.advance);
  }
  return unit;
}

// The unit of a team in a launch that covers the whole batch, one team a unit.
template <typename T, bool kChannelsLast>
__device__ __forceinline__ Unit locate_in_batch(const GroupNormSiluParams& params, const GroupNormSiluTiling& tiling,
                                                const Team& team) {
  const int64_t index = int64_t{blockIdx.x} * team.count + team.index;
  const Quotient quotient = divide(index, unit_count<T, kChannelsLast>(tiling, params.channels));
  return locate<T, kChannelsLast>(params, tiling, quotient.whole, 0, params.channels, quotient.rest, team.member,
                                  quotient.whole < params.batch);
}

// Where a lane's vectors lie in the shared memory of a resident block.
template <typename T, bool kChannelsLast>
__device__ __forceinline__ Cursor shared_cursor(const GroupNormSiluParams& params, const Unit& unit,
                                                int64_t first_channel, int64_t channels, int lanes) {
  constexpr int kWidth = kVectorWidth<T>;
  const int64_t channel = unit.channel - first_channel;
  if constexpr (kChannelsLast) {
    const int64_t columns = (channels + kWidth - 1) / kWidth;
    return {unit.position * columns + channel / kWidth, kTeamRows * columns};
  } else {
    return {channel * ((params.spatial + kWidth - 1) / kWidth) + unit.position / kWidth, lanes};
  }
}

}  // namespace fastdiff::cuda
