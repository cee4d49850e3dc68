// A team: the lanes of one warp that reduce one unit together. All lanes of the warp take part in every exchange.
#pragma once

#include "cuda/platform.cuh"

namespace fastdiff::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarpSize = 32;
constexpr int kTeamRows = 8;     // lanes of a channels-last team
constexpr int kTeamColumns = 4;  // channels-last teams of a warp; adjacent lanes belong to adjacent teams

struct Team {
  int index;   // in the block
  int member;  // lane of the team
  int count;   // of the block
};

template <bool kChannelsLast>
__device__ __forceinline__ Team this_team(int lanes) {
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  if constexpr (kChannelsLast) {
    return {thread / kWarpSize * kTeamColumns + thread % kTeamColumns, thread % kWarpSize / kTeamColumns,
            threads / kTeamRows};
  } else {
    return {thread / lanes, thread % lanes, threads / lanes};
  }
}

// Sum over a team of `lanes` consecutive lanes, the same bits in each.
__device__ __forceinline__ float team_sum(float value, int lanes) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    if (offset < lanes) value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

template <typename Value>
__device__ __forceinline__ void swap(Value& a, Value& b) {
  const Value kept = a;
  a = b;
  b = kept;
}

// One step of reduce_rows: halves the `kActive` values that a lane is still in charge of.
template <int kActive, int kOffset, int kWidth, typename Value, typename Reduction>
__device__ __forceinline__ int reduce_rows_step(Value (&values)[kWidth], Reduction& reduction) {
  constexpr int kKept = kActive > 1 ? kActive / 2 : 1;
  reduction.begin(kOffset);
  const bool upper = (threadIdx.x & kOffset) != 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    Value mine = values[i];
    Value given = values[kActive > 1 ? i + kKept : i];
    if (upper) swap(mine, given);
    Value theirs = reduction.exchange(given, kOffset);
    if (upper) swap(mine, theirs);
    values[i] = reduction.combine(mine, theirs);
  }
  int channel = kActive > 1 && upper ? kKept : 0;
  if constexpr (kOffset > kTeamColumns) channel += reduce_rows_step<kKept, kOffset / 2>(values, reduction);
  return channel;
}

// Reduces values[c] over the rows of a channels-last team and deals the results out: the lane ends with the total of
// the one channel it returns, in values[0]. Half of the channels change hands at each step, so eight channels cost
// seven exchanges instead of 24. `reduction` has begin(offset), called once a step, exchange(value, offset), which gets
// the partner's value, and combine(lower, upper). The lower row always comes first, so that a channel's bits do not
// depend on its place in the vector.
template <int kWidth, typename Value, typename Reduction>
__device__ __forceinline__ int reduce_rows(Value (&values)[kWidth], Reduction reduction) {
  return reduce_rows_step<kWidth, kWarpSize / 2>(values, reduction);
}

// Whether this lane's result of reduce_rows is the one to keep: narrow vectors leave the same total in two lanes.
template <int kWidth>
__device__ __forceinline__ bool owns_reduced_channel() {
  constexpr int kCopies = kTeamRows / kWidth;
  return threadIdx.x % (kTeamColumns * kCopies) < kTeamColumns;
}

}  // namespace fastdiff::cuda
