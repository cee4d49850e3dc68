// Forward kernels of group_norm_silu. U is one pass over the activation.
//
//   resident   2U: a block reads whole groups into shared memory, reduces them there and writes y.
//   streaming  3U: moments_kernel reads x, normalise_kernel merges the partial results of each group, apply_kernel
//   reads
//              x again and writes y. All blocks of the chip share one sample.
//
// Both reduce the same units in the same order with the same code, so they agree to the last bit, and so does any
// batch.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/group_norm_silu_affine.cuh"
#include "cuda/group_norm_silu_source.cuh"
#include "cuda/group_norm_silu_unit.cuh"
#include "cuda/moments.cuh"

namespace fastdiff::cuda {

// Moments of a channels-first unit: two passes over registers about a provisional mean, with the residual added back.
template <typename T, bool kAligned, typename Source>
__device__ __forceinline__ Moments row_moments(const Unit& unit, const Source& source, int length, int lanes) {
  constexpr int kWidth = kVectorWidth<T>;
  uint4 raw[kVectorsInFlight];
#pragma unroll
  for (int k = 0; k < kVectorsInFlight; ++k) {
    if (k < unit.count) raw[k] = source(unit, k);
  }
  const auto visit = [&](auto use) {
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (k >= unit.count) continue;
      float values[kWidth];
      unpack<T>(raw[k], values);
      const int valid = kAligned ? kWidth : unit.template valid<T>(k);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (i < valid) use(values[i]);
      }
    }
  };
  float sum = 0.0f;
  visit([&](float value) { sum += value; });
  const float inverse = __frcp_rn(static_cast<float>(length));
  const float provisional = __fmul_rn(team_sum(sum, lanes), inverse);
  float residual = 0.0f, squares = 0.0f;
  visit([&](float value) {
    const float delta = value - provisional;
    residual += delta;
    squares = fmaf(delta, delta, squares);
  });
  residual = team_sum(residual, lanes);
  squares = team_sum(squares, lanes);
  return {fmaf(residual, inverse, provisional), fmaf(-residual, __fmul_rn(residual, inverse), squares)};
}

// Moments of each channel of a lane's vectors: two passes over registers for a few pixels at a time, merged as they
// come.
template <typename T, typename Source>
__device__ __forceinline__ void column_moments(const Unit& unit, const Source& source,
                                               Moments (&moments)[kVectorWidth<T>]) {
  constexpr int kWidth = kVectorWidth<T>;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) moments[i] = {0.0f, 0.0f};
  for (int first = 0; first < unit.count; first += kVectorsInFlight) {
    const int pixels = min(kVectorsInFlight, unit.count - first);
    float values[kVectorsInFlight][kWidth];
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      unpack<T>(k < pixels ? source(unit, first + k) : make_uint4(0, 0, 0, 0), values[k]);
    }
    const float inverse = __frcp_rn(static_cast<float>(pixels));
    const float weight = __fdiv_rn(static_cast<float>(pixels), static_cast<float>(first + pixels));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < kVectorsInFlight; ++k) sum += values[k][i];  // absent pixels are zero
      Moments batch = {__fmul_rn(sum, inverse), 0.0f};
#pragma unroll
      for (int k = 0; k < kVectorsInFlight; ++k) {
        const float delta = k < pixels ? values[k][i] - batch.mean : 0.0f;
        batch.m2 = fmaf(delta, delta, batch.m2);
      }
      moments[i] = merge(moments[i], static_cast<float>(first), batch, weight);
    }
  }
}

// reduce_rows of column moments, whose rows may have read different numbers of pixels.
struct MomentsReduction {
  float count;  // of this row and those merged into it
  float lower = 0.0f;
  float weight = 0.0f;

  __device__ __forceinline__ void begin(int offset) {
    const float partner = __shfl_xor_sync(kAllLanes, count, offset);
    const bool upper = (threadIdx.x & offset) != 0;
    const float total = count + partner;
    lower = upper ? partner : count;
    weight = total > 0.0f ? __fdiv_rn(upper ? count : partner, total) : 0.0f;
    count = total;
  }
  __device__ __forceinline__ Moments exchange(const Moments& value, int offset) const {
    return {__shfl_xor_sync(kAllLanes, value.mean, offset), __shfl_xor_sync(kAllLanes, value.m2, offset)};
  }
  __device__ __forceinline__ Moments combine(const Moments& a, const Moments& b) const {
    return merge(a, lower, b, weight);
  }
};

// Reduces one unit and writes the moments of its channels: those of channel c, part p go to
// partials[(c - first_channel) * parts + p].
template <typename T, bool kChannelsLast, bool kAligned, typename Source>
__device__ __forceinline__ void write_unit_moments(const GroupNormSiluParams& params, const GroupNormSiluTiling& tiling,
                                                   const Unit& unit, const Team& team, bool live, const Source& source,
                                                   int64_t first_channel, Moments* partials) {
  if constexpr (kChannelsLast) {
    constexpr int kWidth = kVectorWidth<T>;
    Moments moments[kWidth];
    column_moments<T>(unit, source, moments);
    const int channel = reduce_rows(moments, MomentsReduction{static_cast<float>(unit.count)});
    if (live && channel < unit.limit && owns_reduced_channel<kWidth>()) {
      partials[(unit.channel + channel - first_channel) * tiling.parts + unit.part] = moments[0];
    }
  } else {
    const int length = live ? part_length(tiling, params.spatial, unit.part) : 1;
    const Moments moments = row_moments<T, kAligned>(unit, source, length, tiling.lanes);
    if (live && team.member == 0) partials[(unit.channel - first_channel) * tiling.parts + unit.part] = moments;
  }
}

// y of one unit. `affines` points at the constants of the unit's first channel.
template <typename T, bool kChannelsLast, bool kAligned, typename Source>
__device__ __forceinline__ void write_unit_output(const GroupNormSiluParams& params, const GroupNormSiluTiling& tiling,
                                                  const Unit& unit, const Source& source, const Affine* affines) {
  constexpr int kWidth = kVectorWidth<T>;
  constexpr int kAffines = kChannelsLast ? kWidth : 1;
  if (unit.count == 0) return;
  Affine affine[kAffines];
#pragma unroll
  for (int i = 0; i < kAffines; ++i) affine[i] = i < unit.limit ? affines[i] : Affine{};
  const Cursor out = cursor<T, kChannelsLast>(unit, dense_strides<kChannelsLast>(params), tiling.lanes);
  T* y = static_cast<T*>(params.y) + out.start;
  for (int first = 0; first < unit.count; first += kVectorsInFlight) {
    uint4 raw[kVectorsInFlight];
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (first + k < unit.count) raw[k] = source(unit, first + k);
    }
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (first + k >= unit.count) continue;
      float values[kWidth];
      unpack<T>(raw[k], values);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const Affine& constants = affine[kChannelsLast ? i : 0];
        const float z = apply(constants, center(constants, values[i]));
        values[i] = params.silu ? silu(z) : z;
      }
      store_vector<T, kAligned>(y + (first + k) * out.step, values, unit.template valid<T>(first + k));
    }
  }
}

// Merges the parts of `channels` channels over the whole block.
__device__ __forceinline__ void merge_channel_moments(const GroupNormSiluParams& params,
                                                      const GroupNormSiluTiling& tiling, int64_t channels,
                                                      const Moments* partials, Moments* merged) {
  const Team team = this_team<false>(tiling.merge_lanes);
  const float total = static_cast<float>(params.spatial);
  const auto part_size = [&](int64_t part) {
    if constexpr (planted<Mutation::WrongSplitMerge>) part = 0;
    return static_cast<float>(part_length(tiling, params.spatial, part));
  };
  for (int64_t first = 0; first < channels; first += team.count) {
    const int64_t channel = first + team.index;
    const bool live = channel < channels;
    const Moments* parts = partials + channel * tiling.parts;
    const Moments moments = merge_all(
        live ? tiling.parts : 0, total, team.member, tiling.merge_lanes, [&](int64_t part) { return parts[part]; },
        part_size);
    if (live && team.member == 0) merged[channel] = moments;
  }
}

// One warp: statistics of a group from its channels' moments, mean and rstd, and the constants of its channels, of
// which `affines` holds the operands. `channels` and `affines` begin at the group's first channel.
__device__ __forceinline__ void normalise_group(const GroupNormSiluParams& params, int64_t sample, int64_t group,
                                                const Moments* channels, Affine* affines) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t size = params.channels / params.groups;
  const float spatial = static_cast<float>(params.spatial);
  const float total = static_cast<float>(size * params.spatial);
  const Moments moments = merge_all(
      size, total, lane, kWarpSize,
      [&](int64_t i) { return Moments{channels[i].mean + affines[i].time_bias, channels[i].m2}; },
      [&](int64_t) { return spatial; });
  const float variance = __fdiv_rn(moments.m2, total);
  // Rounding may leave a tiny negative variance; NaN fails the comparison and stays.
  const float rstd = __fdiv_rn(1.0f, sqrtf((variance < 0.0f ? 0.0f : variance) + params.eps));
  if (lane == 0) {
    params.mean[sample * params.groups + group] = moments.mean;
    params.rstd[sample * params.groups + group] = rstd;
  }
  for (int64_t i = lane; i < size; i += kWarpSize) add_statistics(affines[i], moments.mean, rstd);
}

// The whole block: operands of `channels` channels of one sample, from `first_channel` on.
__device__ __forceinline__ void load_all_operands(const GroupNormSiluParams& params, int64_t sample,
                                                  int64_t first_channel, int64_t channels, Affine* affines) {
  for (int64_t i = threadIdx.x; i < channels; i += blockDim.x) {
    affines[i] = load_operands(params, sample, first_channel + i);
  }
}

template <typename T, bool kChannelsLast, bool kAligned>
__global__ void __launch_bounds__(kStreamingThreads, kStreamingBlocks)
    moments_kernel(GroupNormSiluParams params, GroupNormSiluTiling tiling, Moments* partials) {
  const Team team = this_team<kChannelsLast>(tiling.lanes);
  const Unit unit = locate_in_batch<T, kChannelsLast>(params, tiling, team);
  const auto source = global_source<T, kChannelsLast, kAligned>(params.x, unit, tiling);
  write_unit_moments<T, kChannelsLast, kAligned>(params, tiling, unit, team, unit.sample < params.batch, source, 0,
                                                 partials + unit.sample * params.channels * tiling.parts);
}

// One block a group. Not templated: it never touches an activation.
__global__ void __launch_bounds__(kMergeThreads)
    normalise_kernel(GroupNormSiluParams params, GroupNormSiluTiling tiling, const Moments* partials,
                     Moments* channel_moments, Affine* affines) {
  const int64_t size = params.channels / params.groups;
  const int64_t sample = blockIdx.x / params.groups;
  const int64_t group = blockIdx.x % params.groups;
  const int64_t first = int64_t{blockIdx.x} * size;  // of all channels of all samples
  load_all_operands(params, sample, group * size, size, affines + first);
  merge_channel_moments(params, tiling, size, partials + first * tiling.parts, channel_moments + first);
  __syncthreads();
  if (threadIdx.x < kWarpSize) normalise_group(params, sample, group, channel_moments + first, affines + first);
}

template <typename T, bool kChannelsLast, bool kAligned>
__global__ void __launch_bounds__(kStreamingThreads, kStreamingBlocks)
    apply_kernel(GroupNormSiluParams params, GroupNormSiluTiling tiling, const Affine* affines) {
  const Team team = this_team<kChannelsLast>(tiling.lanes);
  const Unit unit = locate_in_batch<T, kChannelsLast>(params, tiling, team);
  const auto source = global_source<T, kChannelsLast, kAligned>(params.x, unit, tiling);
  write_unit_output<T, kChannelsLast, kAligned>(params, tiling, unit, source,
                                                affines + unit.sample * params.channels + unit.channel);
}

// Persistent blocks; each takes the groups of `tile_channels` channels of one sample at a time.
template <typename T, bool kChannelsLast, bool kAligned>
__global__ void __launch_bounds__(kResidentThreads, 1)
    resident_kernel(GroupNormSiluParams params, GroupNormSiluTiling tiling, int64_t tile_channels,
                    GroupNormSiluShared shared) {
  const Team team = this_team<kChannelsLast>(tiling.lanes);
  unsigned char* memory = dynamic_shared<unsigned char>();
  uint4* slab = reinterpret_cast<uint4*>(memory);
  Moments* partials = reinterpret_cast<Moments*>(memory + shared.partials);
  Moments* channel_moments = reinterpret_cast<Moments*>(memory + shared.merged);
  Affine* affines = reinterpret_cast<Affine*>(memory + shared.affine);

  const int64_t group_size = params.channels / params.groups;
  const int64_t tiles = (params.channels + tile_channels - 1) / tile_channels;
  for (int64_t tile = blockIdx.x; tile < params.batch * tiles; tile += gridDim.x) {
    const Quotient place = divide(tile, tiles);
    const int64_t sample = place.whole;
    const int64_t first_channel = place.rest * tile_channels;
    const int64_t channels = min(tile_channels, params.channels - first_channel);
    const int64_t units = unit_count<T, kChannelsLast>(tiling, channels);

    const auto unit_at = [&](int64_t first) {
      return locate<T, kChannelsLast>(params, tiling, sample, first_channel, channels, first + team.index, team.member,
                                      first + team.index < units);
    };
    const auto slot_of = [&](const Unit& unit) {
      return shared_cursor<T, kChannelsLast>(params, unit, first_channel, channels, tiling.lanes);
    };

    // Everything that comes from memory is under way at once.
    for (int64_t first = 0; first < units; first += team.count) {
      const Unit unit = unit_at(first);
      keep_unit(unit, global_source<T, kChannelsLast, kAligned>(params.x, unit, tiling), slab, slot_of(unit));
    }
    commit_copies();
    load_all_operands(params, sample, first_channel, channels, affines);
    if constexpr (!planted<Mutation::MissingWait>) wait_for_copies<0>();  // a lane reads what it has copied itself
    for (int64_t first = 0; first < units; first += team.count) {
      const Unit unit = unit_at(first);
      write_unit_moments<T, kChannelsLast, kAligned>(params, tiling, unit, team, first + team.index < units,
                                                     SharedSource{slab, slot_of(unit)}, first_channel, partials);
    }
    if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();
    merge_channel_moments(params, tiling, channels, partials, channel_moments);
    __syncthreads();
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    for (int64_t group = warp; group < channels / group_size; group += blockDim.x / kWarpSize) {
      normalise_group(params, sample, first_channel / group_size + group, channel_moments + group * group_size,
                      affines + group * group_size);
    }
    __syncthreads();
    for (int64_t first = 0; first + team.index < units; first += team.count) {
      const Unit unit = unit_at(first);
      write_unit_output<T, kChannelsLast, kAligned>(params, tiling, unit, SharedSource{slab, slot_of(unit)},
                                                    affines + (unit.channel - first_channel));
    }
    // The next tile's operands overwrite the constants that slower warps still read.
    if constexpr (!planted<Mutation::MissingBarrierBeforeWrite>) __syncthreads();
  }
}

}  // namespace fastdiff::cuda
