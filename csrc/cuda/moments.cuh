// Mean and sum of squared deviations (M2) of a set of values, and their merge. Never E[x^2] - E[x]^2, which at
// mean / std = 1000 has no correct digit in float32.
//
// Every product that feeds a sum is written as fmaf() or __fmul_rn(): the compiler may not choose where to fuse, so two
// kernels that inline these functions agree to the last bit.
#pragma once

#include "cuda/platform.cuh"
#include "cuda/team.cuh"

namespace fastdiff::cuda {

struct alignas(8) Moments {
  float mean;
  float m2;
};

// Pairwise update of Chan, Golub and LeVeque (1979), equations 2.1; `weight` is count_b / (count_a + count_b).
__device__ __forceinline__ Moments merge(const Moments& a, float count_a, const Moments& b, float weight) {
  const float delta = b.mean - a.mean;
  return {fmaf(delta, weight, a.mean), fmaf(delta * delta, count_a * weight, a.m2 + b.m2)};
}

// The same formula for any number of sets: `get(i)` returns the moments of set i and `size(i)` its number of values,
// `total` of them in all. The sets are dealt to the `lanes` of a team, which all get the result. Lanes that pass
// `sets` = 0 only take part in the exchanges.
template <typename Get, typename Size>
__device__ __forceinline__ Moments merge_all(int64_t sets, float total, int member, int lanes, Get get, Size size) {
  const float pivot = sets > 0 ? get(0).mean : 0.0f;
  float sum = 0.0f;
  for (int64_t i = member; i < sets; i += lanes) sum = fmaf(size(i), get(i).mean - pivot, sum);
  const float mean = pivot + __fdiv_rn(team_sum(sum, lanes), total);
  float m2 = 0.0f;
  for (int64_t i = member; i < sets; i += lanes) {
    const Moments set = get(i);
    const float delta = set.mean - mean;
    m2 = fmaf(size(i) * delta, delta, m2 + set.m2);
  }
  return {mean, team_sum(m2, lanes)};
}

}  // namespace fastdiff::cuda
