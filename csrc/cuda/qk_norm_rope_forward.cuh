// Forward kernels of qk_norm_rope: each head is read once and written once. The weights are folded into the
// coefficients of the rotation.
#pragma once

#include "cuda/qk_norm_rope_unit.cuh"

namespace fastdiff::cuda {

// y[i] = xhat[i] * own[i] + xhat[partner of i] * other[i]
template <typename T>
struct Rotation {
  float own[kUnitWidth<T>];
  float other[kUnitWidth<T>];
};

template <typename T, bool kInterleaved, bool kAligned>
__device__ __forceinline__ Rotation<T> load_rotation(const QkNormRopeParams& params,
                                                     const float (&weights)[kUnitWidth<T>], const HeadUnit& unit,
                                                     const TeamWork& work) {
  Rotation<T> rotation;
  const bool rotates = unit.rotates && work.first_head < work.end_head && work.token >= params.text_tokens;
  if (!rotates) {
#pragma unroll
    for (int i = 0; i < kUnitWidth<T>; ++i) {
      rotation.own[i] = weights[i];
      rotation.other[i] = 0.0f;
    }
    return rotation;
  }
  load_row<T, kAligned>(table_row(params, params.cos, work.sample, work.token), unit, rotation.own);
  load_row<T, kAligned>(table_row(params, params.sin, work.sample, work.token), unit, rotation.other);
#pragma unroll
  for (int i = 0; i < kUnitWidth<T>; ++i) {
    rotation.own[i] = __fmul_rn(rotation.own[i], weights[i]);
    const float weight = sign_of<T, kInterleaved>(i) * weights[partner_of<T, kInterleaved>(i)];
    rotation.other[i] = __fmul_rn(rotation.other[i], weight);
  }
  return rotation;
}

// One head by its team; lanes without a part in it only take part in the sum.
template <typename T, bool kInterleaved>
__device__ __forceinline__ void rotate_head(const QkNormRopeParams& params, const NormRopeTiling& tiling,
                                            const HeadUnit& unit, const Rotation<T>& rotation, const uint4 (&raw)[2],
                                            bool live, T* y) {
  float x[kUnitWidth<T>], squares = 0.0f;
  unpack_unit<T>(raw, x);
#pragma unroll
  for (int i = 0; i < kUnitWidth<T>; ++i) squares = fmaf(x[i], x[i], squares);
  const float rstd = reciprocal_norm(params, team_sum(live ? squares : 0.0f, tiling.lanes));
  if (!live) return;
#pragma unroll
  for (int i = 0; i < kUnitWidth<T>; ++i) x[i] = __fmul_rn(x[i], rstd);
  float rotated[kUnitWidth<T>];
#pragma unroll
  for (int i = 0; i < kUnitWidth<T>; ++i) {
    const float other = __fmul_rn(x[partner_of<T, kInterleaved>(i)], rotation.other[i]);
    rotated[i] = fmaf(x[i], rotation.own[i], other);
  }
  store_unit(y, unit, rotated);
}

// Heads whose loads are under way at a time.
constexpr int kHeadsInFlight = 2;

template <typename T, bool kInterleaved, bool kAligned>
__global__ void __launch_bounds__(kNormRopeThreads, 2)
    norm_rope_kernel(QkNormRopeParams params, NormRopeTiling tiling) {
  const NormRopeHeads heads = heads_of_block(params);
  const Team team = this_team<false>(tiling.lanes);
  const HeadUnit unit = head_unit<T, kInterleaved>(params, team.member);
  const TeamWork work =
      team_work(params, heads.heads, tiling.team_heads, int64_t{blockIdx.x} * team.count + team.index);
  float weights[kUnitWidth<T>];
  load_weights<T>(heads, unit, weights);
  const Rotation<T> rotation = load_rotation<T, kInterleaved, kAligned>(params, weights, unit, work);
  // The same number of rounds for all teams of a warp, as they meet in the sums.
  for (int round = 0; round < tiling.team_heads; round += kHeadsInFlight) {
    uint4 raw[kHeadsInFlight][2] = {};
#pragma unroll
    for (int k = 0; k < kHeadsInFlight; ++k) {
      const int64_t head = work.first_head + round + k;
      if (unit.exists && head < work.end_head) {
        load_unit<T, kAligned>(head_at<T>(heads.x, work.sample, work.token, head), unit, raw[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kHeadsInFlight; ++k) {
      const int64_t head = work.first_head + round + k;
      T* y = static_cast<T*>(heads.y) + dense_head(params, heads.heads, work.sample, work.token, head);
      rotate_head<T, kInterleaved>(params, tiling, unit, rotation, raw[k], unit.exists && head < work.end_head, y);
    }
  }
}

// Any head, one warp for each: its second read finds it in the nearest cache.
template <typename T>
__global__ void __launch_bounds__(kNormRopeThreads) norm_rope_elements_kernel(QkNormRopeParams params) {
  const NormRopeHeads heads = heads_of_block(params);
  const Team team = this_team<false>(kWarpSize);
  const TeamWork work = team_work(params, heads.heads, 1, int64_t{blockIdx.x} * team.count + team.index);
  if (work.first_head == work.end_head) return;  // the whole warp
  const T* x = head_at<T>(heads.x, work.sample, work.token, work.first_head);
  T* y = static_cast<T*>(heads.y) + dense_head(params, heads.heads, work.sample, work.token, work.first_head);
  float squares = 0.0f;
  for (int64_t i = team.member; i < params.head_dim; i += kWarpSize) {
    const float value = to_float(x[i]);
    squares = fmaf(value, value, squares);
  }
  const float rstd = reciprocal_norm(params, team_sum(squares, kWarpSize));
  for (int64_t i = team.member; i < params.head_dim; i += kWarpSize) {
    const ElementPlace place = element_place(params, work.token, i);
    const float z = to_float(x[i]) * rstd * load_weight(heads, i);
    if (place.sign == 0.0f) {
      y[i] = from_float<T>(z);
      continue;
    }
    const float partner = to_float(x[place.partner]) * rstd * load_weight(heads, place.partner);
    const float cos = table_row(params, params.cos, work.sample, work.token)[i];
    const float sin = table_row(params, params.sin, work.sample, work.token)[i];
    y[i] = from_float<T>(fmaf(z, cos, __fmul_rn(place.sign * partner, sin)));
  }
}

}  // namespace fastdiff::cuda
