// Moments of a block of group_norm_silu where channels come first: its channels are runs in memory.
#pragma once

#include "cpu/group_norm_silu_common.h"
#include "cpu/group_norm_silu_moments.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

// Elements after which float32 sums are emptied into float64 ones: beside one outlier, more would vanish in its
// rounding.
constexpr int64_t kStretchElements = 1024;

// Sums of (x - center) and its square over runs.
class ShiftedSums {
 public:
  template <class T>
  void add_run(const T* x, int64_t count, float center) {
    for (int64_t begin = 0; begin < count; begin += kStretchElements) {
      const int64_t length = minimum(kStretchElements, count - begin);
      add_stretch(x + begin, length, broadcast(center));
      pending_ += length;
      if (pending_ >= kStretchElements) flush();
    }
  }

  double total() {
    flush();
    return total_.total();
  }
  double total_squares() {
    flush();
    return total_squares_.total();
  }
  // No |x - center| was larger: one square is no more than the sum it went into.
  double reach() {
    flush();
    return kReachMargin * std::sqrt(double(largest_lane(largest_squares_)));
  }

 private:
  template <class T>
  FASTDIFF_INLINE void add_stretch(const T* x, int64_t count, Float center) {
    int64_t i = 0;
    for (; i + 2 * kPack <= count; i += 2 * kPack) {
      const Pack v = load_pack(x + i), w = load_pack(x + i + kPack);
      prefetch_ahead(x + i);
      add(0, v.first - center);
      add(1, v.second - center);
      add(2, w.first - center);
      add(3, w.second - center);
    }
    for (; i < count; i += kPack) {
      const int left = static_cast<int>(minimum(kPack, count - i));
      const Pack v = left == kPack ? load_pack(x + i) : load_partial(x + i, left);
      const Pack d = keep_first<T>({v.first - center, v.second - center}, left);
      add(0, d.first);
      add(1, d.second);
    }
  }

  FASTDIFF_INLINE void add(int chain, Float d) {
    sums_[chain] += d;
    squares_[chain] += d * d;
  }

  FASTDIFF_INLINE void flush() {
    const Float squares = (squares_[0] + squares_[1]) + (squares_[2] + squares_[3]);
    total_.add((sums_[0] + sums_[1]) + (sums_[2] + sums_[3]));
    total_squares_.add(squares);
    largest_squares_ = largest_squares_ > squares ? largest_squares_ : squares;
    for (int chain = 0; chain < kChains; chain++) sums_[chain] = squares_[chain] = Float{};
    pending_ = 0;
  }

  static constexpr int kChains = 4;  // independent sums hide the latency of an addition
  Float sums_[kChains] = {}, squares_[kChains] = {};
  Float largest_squares_ = {};
  int64_t pending_ = 0;
  WideSum total_, total_squares_;
};

// Moments of x + time_bias over elements [begin, end) of a group. The sums are shifted by the mean of the block's
// first elements, so that nothing cancels when the mean is large beside the deviation.
template <class T>
Moments shifted_moments(const T* x, const Runs& runs, int64_t begin, int64_t end, const float* time_bias) {
  // What rounding center - time_bias shifts the sum by; beside the squares it is nothing.
  double rounding = 0;
  const auto sums_about = [&](int64_t stop, double center) {
    ShiftedSums s;
    rounding = 0;
    for_each_run(runs, begin, stop, [&](int64_t offset, int64_t count, int64_t channel) {
      const float shift = static_cast<float>(center - time_bias[channel]);
      s.add_run(x + offset, count, shift);
      rounding += double(count) * (shift + double(time_bias[channel]) - center);
    });
    return s;
  };
  const int64_t probe = minimum(end - begin, 8 * kPack);
  const double center = sums_about(begin + probe, 0.0).total() / double(probe);
  ShiftedSums s = sums_about(end, center);
  const double count = double(end - begin), total = s.total(), to_mean = (total + rounding) / count;
  return {center + to_mean, not_negative(s.total_squares() - total * total / count), count,
          s.reach() + std::abs(to_mean)};
}

#if defined(__AVX512BF16__)
// Sums of x + time_bias and its square over runs of bfloat16, about zero, by the instruction that multiplies pairs: it
// takes the elements as they lie, a third of the work.
class PairSums {
 public:
  void add_run(const BFloat16* x, int64_t count, float time_bias) {
    for (int64_t begin = 0; begin < count; begin += kStretchElements) {
      const int64_t length = minimum(kStretchElements, count - begin);
      add_stretch(x + begin, length, time_bias);
      pending_ += length;
      if (pending_ >= kStretchElements) flush();
    }
    bias_ += double(count) * time_bias;
    bias_squares_ += double(count) * (double(time_bias) * time_bias);
    largest_bias_ = larger(std::abs(double(time_bias)), largest_bias_);
  }

  // The moments, where rounding leaves them digits enough for a bfloat16 result; else `exact` is false.
  Moments moments(double count, bool* exact) {
    flush();
    // Some ten roundings an addend: the sums are off by less than 2^-20 of the squares, the deviation by 2^-13 of
    // itself, a sixteenth of what a bfloat16 shows.
    constexpr double kLargestRatio = 256;
    const double farthest = std::sqrt(double(largest_lane(largest_squares_))) + largest_bias_;
    const SumsAboutZero sums = {count, total_.total() + bias_, squares_total_.total() + bias_squares_,
                                cross_total_.total(), farthest};
    return sums.moments(kLargestRatio, exact);
  }

 private:
  FASTDIFF_INLINE void add_stretch(const BFloat16* x, int64_t count, float time_bias) {
    Float sums[kChains] = {}, squares[kChains] = {};
    const UInt ones = 0x3f803f80u - UInt{};
    const auto add = [&](int chain, UInt pairs) FASTDIFF_INLINE_LAMBDA {
      sums[chain] = multiply_add(pairs, ones, sums[chain]);
      squares[chain] = multiply_add(pairs, pairs, squares[chain]);
    };
    const auto pack_at = [&](int64_t i)
                             FASTDIFF_INLINE_LAMBDA { return load(reinterpret_cast<const BFloat16Pair*>(x + i)); };
    int64_t i = 0;
    for (; i + kChains * kPack <= count; i += kChains * kPack) {
      prefetch_ahead(x + i);
#pragma GCC unroll 8
      for (int chain = 0; chain < kChains; chain++) add(chain, pack_at(i + chain * kPack));
    }
    for (; i + kPack <= count; i += kPack) add(0, pack_at(i));
    if (i < count) add(1, load_first_pairs(x + i, count - i));
    Float sum = {};
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; chain++) {
      sum += sums[chain];
      squares_ += squares[chain];
    }
    sum_ += sum;
    cross_ += 2 * time_bias * sum;
  }

  FASTDIFF_INLINE void flush() {
    total_.add(sum_);
    squares_total_.add(squares_);
    cross_total_.add(cross_);
    largest_squares_ = largest_squares_ > squares_ ? largest_squares_ : squares_;
    sum_ = squares_ = cross_ = Float{};
    pending_ = 0;
  }

  static constexpr int kChains = 8;
  // Of x, of x^2 and of 2 * time_bias * x.
  Float sum_ = {}, squares_ = {}, cross_ = {}, largest_squares_ = {};
  WideSum total_, squares_total_, cross_total_;
  int64_t pending_ = 0;
  double bias_ = 0, bias_squares_ = 0, largest_bias_ = 0;
};
#endif

template <class T>
Moments block_moments(const T* x, const Runs& runs, int64_t begin, int64_t end, const float* time_bias) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    PairSums sums;
    for_each_run(runs, begin, end, [&](int64_t offset, int64_t count, int64_t channel) {
      sums.add_run(x + offset, count, time_bias[channel]);
    });
    bool exact;
    const Moments moments = sums.moments(double(end - begin), &exact);
    if (exact) return moments;
  }
#endif
  return shifted_moments(x, runs, begin, end, time_bias);
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
