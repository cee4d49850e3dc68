// Mean and deviation of a group of group_norm_silu, and how those of its parts are put together.
#pragma once

#include <cmath>

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

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
