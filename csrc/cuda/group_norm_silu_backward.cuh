// Backward kernels of group_norm_silu. With xhat = (x + time_bias - mean) * rstd, z = xhat * A + B, A = weight *
// (1 + scale), dz = dy * act'(z) and m values a group,
//
//   dx = rstd * (dz * A - G0 / m - xhat * G1 / m),   G0 = sum_c A * D0,  G1 = sum_c A * D1,
//   D0 = sum_s dz,  D1 = sum_s dz * xhat  (per sample and channel),
//
// and every other gradient is a combination of D0, D1 and sum_s xhat. U is one pass over the activation.
//
//   resident   3U: a block keeps x and dy of whole groups in shared memory.
//   streaming  5U: sums_kernel reads x and dy, merge_sums_kernel merges, gradient_kernel reads both again, writes dx.
//
// As in the forward pass, both paths and all batch sizes give the same bits.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/group_norm_silu_affine.cuh"
#include "cuda/group_norm_silu_source.cuh"
#include "cuda/group_norm_silu_unit.cuh"
#include "cuda/team.cuh"

namespace fastdiff::cuda {

// Sums over space, where x stands for x + time_bias - mean.
struct Sums {
  float dz;
  float dz_x;
  float x;
};

__device__ __forceinline__ Sums operator+(const Sums& a, const Sums& b) {
  return {a.dz + b.dz, a.dz_x + b.dz_x, a.x + b.x};
}

// dx = dz * gain + (x + time_bias - mean) * slope + constant, the last two the same for a whole group. Each product
// dz * gain is rounded by itself, as in the group's sum, so that they cancel where the group is a single value.
struct alignas(8) GradientTerms {
  float slope;
  float constant;
};

// What one sample adds to dweight and dbias.
struct alignas(8) WeightGradients {
  float weight;
  float bias;
};

// `centered` is x + time_bias - mean. Rounded by itself, so that no kernel fuses the product into a sum.
__device__ __forceinline__ float gradient_of_z(const Affine& affine, float centered, float dy, bool use_silu) {
  if (!use_silu) return dy;
  return __fmul_rn(dy, silu_derivative(apply(affine, centered)));
}

struct SumsReduction {
  __device__ __forceinline__ void begin(int) const {}
  __device__ __forceinline__ Sums exchange(const Sums& value, int offset) const {
    return {__shfl_xor_sync(kAllLanes, value.dz, offset), __shfl_xor_sync(kAllLanes, value.dz_x, offset),
            __shfl_xor_sync(kAllLanes, value.x, offset)};
  }
  __device__ __forceinline__ Sums combine(const Sums& a, const Sums& b) const { return a + b; }
};

__device__ __forceinline__ Sums team_sum(const Sums& sums, int lanes) {
  return {team_sum(sums.dz, lanes), team_sum(sums.dz_x, lanes), team_sum(sums.x, lanes)};
}

// Calls use(vector, i, x, dy) for all elements of a lane's vectors, with `kInFlight` loads of each under way, and
// finish(vector) after each vector.
template <typename T, bool kAligned, int kInFlight, typename XSource, typename DySource, typename Use, typename Finish>
__device__ __forceinline__ void visit_pairs(const Unit& unit, const XSource& x_source, const DySource& dy_source,
                                            Use use, Finish finish) {
  constexpr int kWidth = kVectorWidth<T>;
  for (int first = 0; first < unit.count; first += kInFlight) {
    uint4 raw_x[kInFlight], raw_dy[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (first + k >= unit.count) continue;
      raw_x[k] = x_source(unit, first + k);
      raw_dy[k] = dy_source(unit, first + k);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (first + k >= unit.count) continue;
      float x[kWidth], dy[kWidth];
      unpack<T>(raw_x[k], x);
      unpack<T>(raw_dy[k], dy);
      const int valid = kAligned ? kWidth : unit.template valid<T>(first + k);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (i < valid) use(i, x[i], dy[i]);
      }
      finish(first + k);
    }
  }
}

// Fewer where a lane's constants or its single-element loads need the registers.
template <bool kChannelsLast, bool kAligned>
constexpr int kPairsInFlight = kAligned && !kChannelsLast ? kVectorsInFlight : 2;

// Constants of the channels of a unit's vectors: one channel, or one for each element.
template <typename T, bool kChannelsLast>
constexpr int kUnitChannels = kChannelsLast ? kVectorWidth<T> : 1;

// Reduces one unit and writes the sums of its channels: those of channel c, part p go to
// partials[(c - first_channel) * parts + p]. `affines` points at the constants of the unit's first channel.
template <typename T, bool kChannelsLast, bool kAligned, typename XSource, typename DySource>
__device__ __forceinline__ void write_unit_sums(const GroupNormSiluParams& params, const GroupNormSiluTiling& tiling,
                                                const Unit& unit, const Team& team, bool live, const XSource& x_source,
                                                const DySource& dy_source, const Affine* affines, int64_t first_channel,
                                                Sums* partials) {
  constexpr int kChannels = kUnitChannels<T, kChannelsLast>;
  Affine affine[kChannels];
  Sums sums[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    affine[i] = unit.count > 0 && i < unit.limit ? affines[i] : Affine{};
    sums[i] = {0.0f, 0.0f, 0.0f};
  }
  visit_pairs<T, kAligned, kPairsInFlight<kChannelsLast, kAligned>>(
      unit, x_source, dy_source,
      [&](int i, float x, float dy) {
        const int c = kChannelsLast ? i : 0;
        const float centered = center(affine[c], x);
        const float dz = gradient_of_z(affine[c], centered, dy, params.silu);
        sums[c] = {sums[c].dz + dz, fmaf(dz, centered, sums[c].dz_x), sums[c].x + centered};
      },
      [](int) {});
  if constexpr (kChannelsLast) {
    const int channel = reduce_rows(sums, SumsReduction{});
    if (live && channel < unit.limit && owns_reduced_channel<kChannels>()) {
      partials[(unit.channel + channel - first_channel) * tiling.parts + unit.part] = sums[0];
    }
  } else {
    const Sums total = team_sum(sums[0], tiling.lanes);
    if (live && team.member == 0) partials[(unit.channel - first_channel) * tiling.parts + unit.part] = total;
  }
}

// dx of one unit. `affines` and `terms` point at the constants of the unit's first channel.
template <typename T, bool kChannelsLast, bool kAligned, typename XSource, typename DySource>
__device__ __forceinline__ void write_unit_gradient(const GroupNormSiluBackwardParams& params,
                                                    const GroupNormSiluTiling& tiling, const Unit& unit,
                                                    const XSource& x_source, const DySource& dy_source,
                                                    const Affine* affines, const GradientTerms* terms) {
  constexpr int kChannels = kUnitChannels<T, kChannelsLast>;
  if (unit.count == 0) return;
  Affine affine[kChannels];
  GradientTerms term[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    affine[i] = i < unit.limit ? affines[i] : Affine{};
    term[i] = i < unit.limit ? terms[i] : GradientTerms{};
  }
  const Cursor out = cursor<T, kChannelsLast>(unit, dense_strides<kChannelsLast>(params.forward), tiling.lanes);
  T* dx = static_cast<T*>(params.dx) + out.start;
  float values[kVectorWidth<T>];
  visit_pairs<T, kAligned, kPairsInFlight<kChannelsLast, kAligned>>(
      unit, x_source, dy_source,
      [&](int i, float x, float dy) {
        const int c = kChannelsLast ? i : 0;
        const float centered = center(affine[c], x);
        const float dz = gradient_of_z(affine[c], centered, dy, params.forward.silu);
        values[i] = __fmul_rn(dz, affine[c].gain) + fmaf(centered, term[c].slope, term[c].constant);
      },
      [&](int vector) { store_vector<T, kAligned>(dx + vector * out.step, values, unit.template valid<T>(vector)); });
}

// Merges the parts of `channels` channels over the whole block.
__device__ __forceinline__ void merge_channel_sums(const GroupNormSiluTiling& tiling, int64_t channels,
                                                   const Sums* partials, Sums* merged) {
  const Team team = this_team<false>(tiling.merge_lanes);
  const int64_t first_part = team.member + (planted<Mutation::WrongSplitMerge> ? 1 : 0);
  for (int64_t first = 0; first < channels; first += team.count) {
    const int64_t channel = first + team.index;
    const bool live = channel < channels;
    Sums sums = {0.0f, 0.0f, 0.0f};
    for (int64_t part = first_part; live && part < tiling.parts; part += tiling.merge_lanes) {
      sums = sums + partials[channel * tiling.parts + part];
    }
    sums = team_sum(sums, tiling.merge_lanes);
    if (live && team.member == 0) merged[channel] = sums;
  }
}

// Gradients of the operands of one channel of one sample. `weight_gradients` may be null.
__device__ __forceinline__ void write_channel_gradients(const GroupNormSiluBackwardParams& params, int64_t sample,
                                                        int64_t channel, float rstd, const Sums& sums,
                                                        const GradientTerms& terms, WeightGradients* weight_gradients) {
  const GroupNormSiluParams& forward = params.forward;
  const int64_t row = sample * forward.channels + channel;
  const float dz_xhat = __fmul_rn(sums.dz_x, rstd);
  const float factor = 1.0f + load_operand(forward.scale, sample, channel, 0.0f);
  if (weight_gradients != nullptr) weight_gradients[row] = {factor * dz_xhat, factor * sums.dz};
  if (params.dshift != nullptr) params.dshift[row] = sums.dz;
  if (params.dscale != nullptr) {
    const float weight = load_operand(forward.weight, 0, channel, 1.0f);
    const float bias = load_operand(forward.bias, 0, channel, 0.0f);
    params.dscale[row] = fmaf(weight, dz_xhat, __fmul_rn(bias, sums.dz));
  }
  if (params.dtime_bias != nullptr) {
    const float gain = __fmul_rn(rstd, load_gain(forward, sample, channel));
    const float spread = fmaf(sums.x, terms.slope, __fmul_rn(static_cast<float>(forward.spatial), terms.constant));
    params.dtime_bias[row] = __fmul_rn(gain, sums.dz) + spread;
  }
}

// One warp: the terms of a group, and the gradients of its channels' operands. `channels` and `terms` begin at the
// group's first channel.
__device__ __forceinline__ void finish_group(const GroupNormSiluBackwardParams& params, int64_t sample, int64_t group,
                                             const Sums* channels, GradientTerms* terms,
                                             WeightGradients* weight_gradients) {
  const GroupNormSiluParams& forward = params.forward;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t size = forward.channels / forward.groups;
  const float rstd = forward.rstd[sample * forward.groups + group];
  float dz = 0.0f, dz_x = 0.0f;
  for (int64_t i = lane; i < size; i += kWarpSize) {
    const float gain = __fmul_rn(rstd, load_gain(forward, sample, group * size + i));
    dz = fmaf(gain, channels[i].dz, dz);
    dz_x = fmaf(gain, channels[i].dz_x, dz_x);
  }
  dz = team_sum(dz, kWarpSize);
  dz_x = team_sum(dz_x, kWarpSize);
  const float per_value = __fdiv_rn(1.0f, static_cast<float>(size * forward.spatial));
  const GradientTerms term = {-__fmul_rn(__fmul_rn(rstd, rstd), __fmul_rn(dz_x, per_value)), -__fmul_rn(dz, per_value)};
  for (int64_t i = lane; i < size; i += kWarpSize) {
    terms[i] = term;
    write_channel_gradients(params, sample, group * size + i, rstd, channels[i], term, weight_gradients);
  }
}

__device__ __forceinline__ Affine load_saved_affine(const GroupNormSiluParams& params, int64_t sample,
                                                    int64_t channel) {
  const int64_t group = sample * params.groups + channel / (params.channels / params.groups);
  Affine affine = load_operands(params, sample, channel);
  add_statistics(affine, params.mean[group], params.rstd[group]);
  return affine;
}

// One thread a channel of a sample.
__global__ void __launch_bounds__(kStreamingThreads) affine_kernel(GroupNormSiluParams params, Affine* affines) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= params.batch * params.channels) return;
  affines[row] = load_saved_affine(params, row / params.channels, row % params.channels);
}

template <typename T, bool kChannelsLast, bool kAligned>
__global__ void __launch_bounds__(kStreamingThreads, kStreamingBlocks)
    sums_kernel(GroupNormSiluBackwardParams params, GroupNormSiluTiling tiling, const Affine* affines, Sums* partials) {
  const GroupNormSiluParams& forward = params.forward;
  const Team team = this_team<kChannelsLast>(tiling.lanes);
  const Unit unit = locate_in_batch<T, kChannelsLast>(forward, tiling, team);
  const int64_t row = unit.sample * forward.channels;
  write_unit_sums<T, kChannelsLast, kAligned>(forward, tiling, unit, team, unit.sample < forward.batch,
                                              global_source<T, kChannelsLast, kAligned>(forward.x, unit, tiling),
                                              global_source<T, kChannelsLast, kAligned>(params.dy, unit, tiling),
                                              affines + row + unit.channel, 0, partials + row * tiling.parts);
}

// One block a group.
__global__ void __launch_bounds__(kMergeThreads)
    merge_sums_kernel(GroupNormSiluBackwardParams params, GroupNormSiluTiling tiling, const Sums* partials,
                      Sums* channel_sums, GradientTerms* terms, WeightGradients* weight_gradients) {
  const int64_t size = params.forward.channels / params.forward.groups;
  const int64_t sample = blockIdx.x / params.forward.groups;
  const int64_t group = blockIdx.x % params.forward.groups;
  const int64_t first = int64_t{blockIdx.x} * size;  // of all channels of all samples
  merge_channel_sums(tiling, size, partials + first * tiling.parts, channel_sums + first);
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    finish_group(params, sample, group, channel_sums + first, terms + first, weight_gradients);
  }
}

template <typename T, bool kChannelsLast, bool kAligned>
__global__ void __launch_bounds__(kStreamingThreads, kStreamingBlocks)
    gradient_kernel(GroupNormSiluBackwardParams params, GroupNormSiluTiling tiling, const Affine* affines,
                    const GradientTerms* terms) {
  const GroupNormSiluParams& forward = params.forward;
  const Team team = this_team<kChannelsLast>(tiling.lanes);
  const Unit unit = locate_in_batch<T, kChannelsLast>(forward, tiling, team);
  const int64_t row = unit.sample * forward.channels + unit.channel;
  write_unit_gradient<T, kChannelsLast, kAligned>(
      params, tiling, unit, global_source<T, kChannelsLast, kAligned>(forward.x, unit, tiling),
      global_source<T, kChannelsLast, kAligned>(params.dy, unit, tiling), affines + row, terms + row);
}

// One thread a channel; samples are added in their order.
__global__ void __launch_bounds__(kStreamingThreads)
    weight_gradient_kernel(const WeightGradients* gradients, int64_t batch, int64_t channels, float* dweight,
                           float* dbias) {
  const int64_t channel = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  WeightGradients sum = {0.0f, 0.0f};
  for (int64_t sample = 0; sample < batch; ++sample) {
    const WeightGradients gradient = gradients[sample * channels + channel];
    sum = {sum.weight + gradient.weight, sum.bias + gradient.bias};
  }
  if (dweight != nullptr) dweight[channel] = sum.weight;
  if (dbias != nullptr) dbias[channel] = sum.bias;
}

__global__ void __launch_bounds__(kStreamingThreads) clear_kernel(float* values, int64_t count) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index < count) values[index] = 0.0f;
}

// Persistent blocks; each takes the groups of `tile_channels` channels of one sample at a time.
template <typename T, bool kChannelsLast, bool kAligned>
__global__ void __launch_bounds__(kResidentThreads, 1)
    resident_backward_kernel(GroupNormSiluBackwardParams params, GroupNormSiluTiling tiling, int64_t tile_channels,
                             GroupNormSiluShared shared, WeightGradients* weight_gradients) {
  const GroupNormSiluParams& forward = params.forward;
  const Team team = this_team<kChannelsLast>(tiling.lanes);
  unsigned char* memory = dynamic_shared<unsigned char>();
  uint4* x_slab = reinterpret_cast<uint4*>(memory);
  uint4* dy_slab = reinterpret_cast<uint4*>(memory + shared.dy);
  Sums* partials = reinterpret_cast<Sums*>(memory + shared.partials);
  GradientTerms* terms = reinterpret_cast<GradientTerms*>(memory + shared.partials);  // once the partials are merged
  Sums* channel_sums = reinterpret_cast<Sums*>(memory + shared.merged);
  Affine* affines = reinterpret_cast<Affine*>(memory + shared.affine);

  const int64_t group_size = forward.channels / forward.groups;
  const int64_t tiles = (forward.channels + tile_channels - 1) / tile_channels;
  for (int64_t tile = blockIdx.x; tile < forward.batch * tiles; tile += gridDim.x) {
    const Quotient place = divide(tile, tiles);
    const int64_t sample = place.whole;
    const int64_t first_channel = place.rest * tile_channels;
    const int64_t channels = min(tile_channels, forward.channels - first_channel);
    const int64_t units = unit_count<T, kChannelsLast>(tiling, channels);

    const auto unit_at = [&](int64_t first) {
      return locate<T, kChannelsLast>(forward, tiling, sample, first_channel, channels, first + team.index, team.member,
                                      first + team.index < units);
    };
    const auto slot_of = [&](const Unit& unit) {
      return shared_cursor<T, kChannelsLast>(forward, unit, first_channel, channels, tiling.lanes);
    };

    // Everything that comes from memory is under way at once.
    for (int64_t first = 0; first < units; first += team.count) {
      const Unit unit = unit_at(first);
      const Cursor slot = slot_of(unit);
      keep_unit(unit, global_source<T, kChannelsLast, kAligned>(forward.x, unit, tiling), x_slab, slot);
      keep_unit(unit, global_source<T, kChannelsLast, kAligned>(params.dy, unit, tiling), dy_slab, slot);
    }
    commit_copies();
    for (int64_t channel = threadIdx.x; channel < channels; channel += blockDim.x) {
      affines[channel] = load_saved_affine(forward, sample, first_channel + channel);
    }
    if constexpr (!planted<Mutation::MissingWait>) wait_for_copies<0>();  // a lane reads what it has copied itself
    __syncthreads();
    for (int64_t first = 0; first < units; first += team.count) {
      const Unit unit = unit_at(first);
      const Cursor slot = slot_of(unit);
      write_unit_sums<T, kChannelsLast, kAligned>(forward, tiling, unit, team, first + team.index < units,
                                                  SharedSource{x_slab, slot}, SharedSource{dy_slab, slot},
                                                  affines + (unit.channel - first_channel), first_channel, partials);
    }
    if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();
    merge_channel_sums(tiling, channels, partials, channel_sums);
    __syncthreads();
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    for (int64_t group = warp; group < channels / group_size; group += blockDim.x / kWarpSize) {
      finish_group(params, sample, first_channel / group_size + group, channel_sums + group * group_size,
                   terms + group * group_size, weight_gradients);
    }
    __syncthreads();
    for (int64_t first = 0; first + team.index < units; first += team.count) {
      const Unit unit = unit_at(first);
      const Cursor slot = slot_of(unit);
      const int64_t channel = unit.channel - first_channel;
      write_unit_gradient<T, kChannelsLast, kAligned>(params, tiling, unit, SharedSource{x_slab, slot},
                                                      SharedSource{dy_slab, slot}, affines + channel, terms + channel);
    }
    // The next tile's constants overwrite those that slower warps still read.
    if constexpr (!planted<Mutation::MissingBarrierBeforeWrite>) __syncthreads();
  }
}

}  // namespace fastdiff::cuda
