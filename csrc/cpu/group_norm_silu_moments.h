// Mean and deviation of a group of group_norm_silu, and how those of its parts are put together.
#pragma once

#include <cmath>

#include "cpu/bfloat16_pairs.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

inline double larger(double a, double b) { return a > b ? a : b; }

// Mean and sum of squared deviations of `count` values, and a bound on how far any of them lies from the mean.
struct Moments {
  double mean = 0, m2 = 0, count = 0, reach = 0;

  // Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
  void merge(const Moments& other) {
    const double total = count + other.count;
    const double delta = other.mean - mean, step = delta * (other.count / total);
    mean += step;
    reach = larger(count > 0 ? reach + std::abs(step) : 0, other.reach + std::abs(delta - step));
    m2 += other.m2 + delta * delta * (count * other.count / total);
    count = total;
  }
};

// What the rounding of sums and centers may add to a bound.
constexpr double kReachMargin = 1.001;

// A difference of sums may fall below zero by rounding; NaN passes.
inline double not_negative(double value) { return value < 0 ? 0 : value; }

inline float largest_lane(Float v) {
  float lanes[kLanes], largest = 0;
  store(lanes, v);
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// Sums about zero over `count` numbers x + time_bias: of them, of x^2 + time_bias^2 and of 2 * x * time_bias; and what
// none of them exceeds.
struct SumsAboutZero {
  double count, sum, squares, cross, farthest;

  // The moments; `exact` tells whether the squares exceed the squared deviations by no more than `largest_ratio`, which
  // rounding allows. NaN and infinity are not exact.
  Moments moments(double largest_ratio, bool* exact) const {
    const double mean = sum / count, m2 = squares + cross - mean * mean * count;
    *exact = m2 < INFINITY && squares <= largest_ratio * m2;
    return {mean, m2, count, kReachMargin * (farthest + std::abs(mean))};
  }
};

// The first `count` elements of fewer than a pack, and zeros.
inline UInt load_first_pairs(const BFloat16* source, int64_t count) {
  BFloat16 rest[kPack] = {};
  std::memcpy(rest, source, count * sizeof(BFloat16));
  return load(reinterpret_cast<const BFloat16Pair*>(rest));
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
