// What guided predictions are multiplied by to have, in part, the deviation of the predictions they were made of.
#pragma once

#include <cmath>

#include "common/sampler_step.h"
#include "cpu/integers.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

FASTDIFF_INLINE Float guide(Float prediction, Float uncond, float guidance) {
  return uncond + guidance * (prediction - uncond);
}

// Float64 sums of numbers and of their squares, both less a pivot: far from it, squares would have no digit left of a
// small variance. As pivot a sample's first number will do: if that is far from all others, the variance is large.
struct PowerSums {
  double sum = 0, squares = 0;

  void add(const PowerSums& other) {
    sum += other.sum;
    squares += other.squares;
  }
  double variance(int64_t count) const {  // unbiased
    const double deviations = squares - sum / static_cast<double>(count) * sum;
    return (deviations < 0 ? 0 : deviations) / static_cast<double>(count - 1);
  }
};

class PowerSumsOfVectors {
 public:
  explicit PowerSumsOfVectors(float pivot) : pivot_(pivot) {}

  FASTDIFF_INLINE void add(Float v) {
    WideFloat wide = widened(v);
    wide.low -= pivot_;
    wide.high -= pivot_;
    sum_.add(wide);
    squares_.add({wide.low * wide.low, wide.high * wide.high});
  }

  PowerSums total() const { return {sum_.total(), squares_.total()}; }

 private:
  double pivot_;
  WideSum sum_, squares_;
};

struct DeviationSums {
  PowerSums prediction, guided;
};

// Of `count` elements from `begin` of a sample on.
template <class P>
DeviationSums deviation_sums(const P* prediction, const P* uncond, int64_t begin, int64_t count, float guidance) {
  P first[2][kLanes];
  for (int lane = 0; lane < kLanes; lane++) {
    std::memcpy(&first[0][lane], prediction, sizeof(P));
    std::memcpy(&first[1][lane], uncond, sizeof(P));
  }
  const Float pivot = load_in_order(first[0]);
  PowerSumsOfVectors of_prediction(pivot[0]), of_guided(guide(pivot, load_in_order(first[1]), guidance)[0]);
  const auto add = [&](const P* p, const P* u) FASTDIFF_INLINE_LAMBDA {
    const Float conditional = load_in_order(p);
    of_prediction.add(conditional);
    of_guided.add(guide(conditional, load_in_order(u), guidance));
  };
  const int64_t end = begin + count;
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) add(prediction + i, uncond + i);
  if (i < end) {
    std::memcpy(first[0], prediction + i, (end - i) * sizeof(P));  // what is left of the first adds nothing
    std::memcpy(first[1], uncond + i, (end - i) * sizeof(P));
    add(first[0], first[1]);
  }
  return {of_prediction.total(), of_guided.total()};
}

// Of each sample. The same bits for any number of threads and any batch: chunks of fixed size are added up in order.
template <class P>
void rescale_factors(const SamplerStepParams& p, const StepCoefficients& c, int64_t chunk, const Threads& threads,
                     float* factors) {
  const int64_t chunks = ceil_div(p.count, chunk);
  const Scratch<DeviationSums> parts(p.batch * chunks);
  parallel_for(threads, p.batch * chunks, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; item++) {
      const int64_t begin = item % chunks * chunk, at = item / chunks * p.count;
      parts[item] =
          deviation_sums(static_cast<const P*>(p.prediction) + at, static_cast<const P*>(p.uncond_prediction) + at,
                         begin, minimum(chunk, p.count - begin), c.guidance);
    }
  });
  for (int64_t sample = 0; sample < p.batch; sample++) {
    DeviationSums whole;
    for (int64_t part = 0; part < chunks; part++) {
      whole.prediction.add(parts[sample * chunks + part].prediction);
      whole.guided.add(parts[sample * chunks + part].guided);
    }
    const double ratio = std::sqrt(whole.prediction.variance(p.count)) / std::sqrt(whole.guided.variance(p.count));
    factors[sample] = static_cast<float>(c.rescale * ratio + (1.0 - c.rescale));
  }
}

}  // namespace
}  // namespace fastdiff::cpu::FASTDIFF_ISA
