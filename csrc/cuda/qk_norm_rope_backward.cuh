// Backward kernels of qk_norm_rope. With xhat = x * rstd and dz the gradient dy turned back by its angle,
//
//   dx = rstd * (dz * weight - xhat * mean(dz * weight * xhat)),   dweight = sum over all heads of dz * xhat.
//
// x and dy are read once and dx is written once; rstd is worked out again. Every block leaves its part of dweight in a
// row of its own, and merge_weight_gradients_kernel sums the rows: no atomics, the same bits in every run.
#pragma once

#include "cuda/mutations.cuh"
#include "cuda/qk_norm_rope_unit.cuh"

namespace fastdiff::cuda {

// Small blocks: a lane keeps so many coefficients and sums that large ones would leave registers idle.
constexpr int kNormRopeBackwardThreads = 128;

// Rows of partial sums of dweight, a row of head_dim floats a block; null where it is not wanted.
struct WeightGradientRows {
  float* query;
  float* key;
};

__device__ __forceinline__ NormRopeGradients gradients_of_block(const QkNormRopeBackwardParams& params) {
  if (blockIdx.y == 0) return params.query;
  return params.key;
}

// The coefficients of one token's gradients: dz[i] = dy[i] * own[i] + dy[partner of i] * other[i].
template <typename T>
struct InverseRotation {
  float own[kUnitWidth<T>];
  float other[kUnitWidth<T>];
};

template <typename T, bool kInterleaved, bool kAligned>
__device__ __forceinline__ InverseRotation<T> load_inverse_rotation(const QkNormRopeParams& params,
                                                                    const HeadUnit& unit, const TeamWork& work) {
  InverseRotation<T> rotation;
  const bool rotates = unit.rotates && work.first_head < work.end_head && work.token >= params.text_tokens;
  if (!rotates) {
#pragma unroll
    for (int i = 0; i < kUnitWidth<T>; ++i) {
      rotation.own[i] = 1.0f;
      rotation.other[i] = 0.0f;
    }
    return rotation;
  }
  float sines[kUnitWidth<T>];
  load_row<T, kAligned>(table_row(params, params.cos, work.sample, work.token), unit, rotation.own);
  load_row<T, kAligned>(table_row(params, params.sin, work.sample, work.token), unit, sines);
#pragma unroll
  for (int i = 0; i < kUnitWidth<T>; ++i) {
    rotation.other[i] = -sign_of<T, kInterleaved>(i) * sines[partner_of<T, kInterleaved>(i)];
  }
  return rotation;
}

// What a lane sums up for its elements of dweight.
template <typename T>
struct WeightGradientSums {
  float values[kUnitWidth<T>];
};

// One head by its team; lanes without a part in it only take part in the sums.
template <typename T, bool kInterleaved>
__device__ __forceinline__ void rotate_head_back(const QkNormRopeParams& params, const NormRopeTiling& tiling,
                                                 const HeadUnit& unit, const InverseRotation<T>& rotation,
                                                 const float (&weights)[kUnitWidth<T>], const uint4 (&raw_x)[2],
                                                 const uint4 (&raw_dy)[2], bool live, T* dx,
                                                 WeightGradientSums<T>& dweight) {
  constexpr int kWidth = kUnitWidth<T>;
  float x[kWidth], dy[kWidth], dz[kWidth], squares = 0.0f, products = 0.0f;
  unpack_unit<T>(raw_x, x);
  unpack_unit<T>(raw_dy, dy);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float other = __fmul_rn(dy[partner_of<T, kInterleaved>(i)], rotation.other[i]);
    dz[i] = fmaf(dy[i], rotation.own[i], other);
    squares = fmaf(x[i], x[i], squares);
    products = fmaf(__fmul_rn(dz[i], weights[i]), x[i], products);
  }
  const float rstd = reciprocal_norm(params, team_sum(live ? squares : 0.0f, tiling.lanes));
  const float mean = __fdiv_rn(team_sum(live ? products : 0.0f, tiling.lanes), static_cast<float>(params.head_dim));
  if (!live) return;
  const float slope = -__fmul_rn(rstd, __fmul_rn(mean, rstd));
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    x[i] = __fmul_rn(x[i], rstd);
    dweight.values[i] = fmaf(dz[i], x[i], dweight.values[i]);
    dy[i] = fmaf(x[i], slope, __fmul_rn(__fmul_rn(dz[i], weights[i]), rstd));
  }
  store_unit(dx, unit, dy);
}

// Sums `rows` rows of head_dim floats in shared memory into the block's own row.
__device__ __forceinline__ void write_weight_gradient(const QkNormRopeParams& params, const float* shared, int rows,
                                                      const WeightGradientRows& partials) {
  float* row = blockIdx.y == 0 ? partials.query : partials.key;
  if constexpr (!planted<Mutation::MissingBarrierBeforeRead>) __syncthreads();
  if (row == nullptr) return;
  for (int64_t i = threadIdx.x; i < params.head_dim; i += blockDim.x) {
    float sum = 0.0f;
    for (int r = 0; r < rows; ++r) sum += shared[r * params.head_dim + i];
    row[blockIdx.x * params.head_dim + i] = sum;
  }
}

// The blocks stay: each takes work by work, so that there are few rows of dweight.
template <typename T, bool kInterleaved, bool kAligned>
__global__ void __launch_bounds__(kNormRopeBackwardThreads, 3)
    norm_rope_backward_kernel(QkNormRopeBackwardParams params, NormRopeTiling tiling, WeightGradientRows partials) {
  const QkNormRopeParams& forward = params.forward;
  const NormRopeHeads heads = heads_of_block(forward);
  const NormRopeGradients gradients = gradients_of_block(params);
  const Team team = this_team<false>(tiling.lanes);
  const HeadUnit unit = head_unit<T, kInterleaved>(forward, team.member);
  const int64_t works = work_count(forward, heads.heads, tiling.team_heads);
  float weights[kUnitWidth<T>];
  load_weights<T>(heads, unit, weights);
  WeightGradientSums<T> dweight = {};
  // The same number of rounds for all teams of a block, as they meet in the sums.
  for (int64_t first = int64_t{blockIdx.x} * team.count; first < works; first += int64_t{gridDim.x} * team.count) {
    const TeamWork work = team_work(forward, heads.heads, tiling.team_heads, first + team.index);
    const InverseRotation<T> rotation = load_inverse_rotation<T, kInterleaved, kAligned>(forward, unit, work);
    for (int round = 0; round < tiling.team_heads; ++round) {
      const int64_t head = work.first_head + round;
      const bool live = unit.exists && head < work.end_head;
      uint4 raw_x[2] = {}, raw_dy[2] = {};
      if (live) {
        load_unit<T, kAligned>(head_at<T>(heads.x, work.sample, work.token, head), unit, raw_x);
        load_unit<T, kAligned>(head_at<T>(gradients.dy, work.sample, work.token, head), unit, raw_dy);
      }
      T* dx = static_cast<T*>(gradients.dx) + dense_head(forward, heads.heads, work.sample, work.token, head);
      rotate_head_back<T, kInterleaved>(forward, tiling, unit, rotation, weights, raw_x, raw_dy, live, dx, dweight);
    }
  }
  float* shared = dynamic_shared<float>();
  if (unit.exists) {
    constexpr int kWidth = kVectorWidth<T>;
    float* row = shared + team.index * forward.head_dim;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      row[unit.first + i] = dweight.values[i];
      row[unit.second + i] = dweight.values[kWidth + i];
    }
  }
  write_weight_gradient(forward, shared, team.count, partials);
}

// dz of one element, for the kernel that goes element by element.
template <typename T>
__device__ __forceinline__ float gradient_of_z(const QkNormRopeParams& params, const TeamWork& work, const T* dy,
                                               int64_t index) {
  const ElementPlace place = element_place(params, work.token, index);
  const float own = to_float(dy[index]);
  if (place.sign == 0.0f) return own;
  const float cos = table_row(params, params.cos, work.sample, work.token)[index];
  const float sin = table_row(params, params.sin, work.sample, work.token)[place.partner];
  return fmaf(own, cos, __fmul_rn(-place.sign * to_float(dy[place.partner]), sin));
}

// Any head, one warp for each. A lane sums up its elements of dweight in its warp's row of shared memory.
template <typename T>
__global__ void __launch_bounds__(kNormRopeBackwardThreads, 4)
    norm_rope_elements_backward_kernel(QkNormRopeBackwardParams params, WeightGradientRows partials) {
  const QkNormRopeParams& forward = params.forward;
  const NormRopeHeads heads = heads_of_block(forward);
  const NormRopeGradients gradients = gradients_of_block(params);
  const Team team = this_team<false>(kWarpSize);
  float* dweight = dynamic_shared<float>() + team.index * forward.head_dim;
  for (int64_t i = team.member; i < forward.head_dim; i += kWarpSize) dweight[i] = 0.0f;
  const int64_t works = work_count(forward, heads.heads, 1);
  for (int64_t index = int64_t{blockIdx.x} * team.count + team.index; index < works;
       index += int64_t{gridDim.x} * team.count) {
    const TeamWork work = team_work(forward, heads.heads, 1, index);
    const T* x = head_at<T>(heads.x, work.sample, work.token, work.first_head);
    const T* dy = head_at<T>(gradients.dy, work.sample, work.token, work.first_head);
    T* dx = static_cast<T*>(gradients.dx) + dense_head(forward, heads.heads, work.sample, work.token, work.first_head);
    float squares = 0.0f, products = 0.0f;
    for (int64_t i = team.member; i < forward.head_dim; i += kWarpSize) {
      const float value = to_float(x[i]);
      squares = fmaf(value, value, squares);
      products = fmaf(__fmul_rn(gradient_of_z(forward, work, dy, i), load_weight(heads, i)), value, products);
    }
    const float rstd = reciprocal_norm(forward, team_sum(squares, kWarpSize));
    const float mean = __fdiv_rn(team_sum(products, kWarpSize), static_cast<float>(forward.head_dim));
    const float slope = -__fmul_rn(rstd, __fmul_rn(mean, rstd));
    for (int64_t i = team.member; i < forward.head_dim; i += kWarpSize) {
      const float xhat = __fmul_rn(to_float(x[i]), rstd), dz = gradient_of_z(forward, work, dy, i);
      dweight[i] = fmaf(dz, xhat, dweight[i]);
      dx[i] = from_float<T>(fmaf(xhat, slope, __fmul_rn(__fmul_rn(dz, load_weight(heads, i)), rstd)));
    }
  }
  write_weight_gradient(forward, dynamic_shared<float>(), team.count, partials);
}

// One warp for each element of dweight; blockIdx.y tells the queries' from the keys'.
__global__ void __launch_bounds__(kNormRopeThreads)
    merge_weight_gradients_kernel(QkNormRopeBackwardParams params, WeightGradientRows partials, int rows) {
  const Team team = this_team<false>(kWarpSize);
  const int64_t head_dim = params.forward.head_dim, index = int64_t{blockIdx.x} * team.count + team.index;
  const float* partial = blockIdx.y == 0 ? partials.query : partials.key;
  float* dweight = gradients_of_block(params).dweight;
  if (index >= head_dim || dweight == nullptr) return;  // the whole warp
  float sum = 0.0f;
  for (int row = team.member; row < rows; row += kWarpSize) sum += partial[row * head_dim + index];
  sum = team_sum(sum, kWarpSize);
  if (team.member == 0) dweight[index] = sum;
}

}  // namespace fastdiff::cuda
