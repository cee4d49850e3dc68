// What guided predictions are multiplied by to have, in part, the deviation of the predictions they were made of.
#pragma once

#include <cmath>

#include "common/sampler_step.h"
#include "cpu/integers.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/threads.h"

namespace fastdiff::cpu::FASTDIFF_ISA {
namespace {

FASTDIFF_INLINE Float guide(Float prediction, Float uncond, float guidance) {
  return uncond + guidance * (prediction - uncond);
}

// Float64 sums of numbers and of their squares, from which a variance loses no digit that float32 inputs have.
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
  FASTDIFF_INLINE void add(Float v) {
    typedef float Half __attribute__((vector_size(2 * kLanes)));
    Half halves[2];
    std::memcpy(halves, &v, sizeof v);
    for (const Half& half : halves) {
      const Double wide = __builtin_convertvector(half, Double);
      sum_ += wide;
      squares_ += wide * wide;
    }
  }

  PowerSums total() const { return {across(sum_), across(squares_)}; }

 private:
  typedef double Double __attribute__((vector_size(4 * kLanes)));

  static double across(Double v) {
    double total = 0;
    for (int i = 0; i < kLanes / 2; i++) total += v[i];
    return total;
  }

  Double sum_ = {}, squares_ = {};
};

struct DeviationSums {
  PowerSums prediction, guided;
};

template <class P>
DeviationSums deviation_sums(const P* prediction, const P* uncond, int64_t count, float guidance) {
  PowerSumsOfVectors of_prediction, of_guided;
  const auto add = [&](const P* p, const P* u) FASTDIFF_INLINE_LAMBDA {
    const Float conditional = load_in_order(p);
    of_prediction.add(conditional);
    of_guided.add(guide(conditional, load_in_order(u), guidance));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(prediction + i, uncond + i);
  if (i < count) {
    P padded[2][kLanes] = {};  // zeros add nothing
    std::memcpy(padded[0], prediction + i, (count - i) * sizeof(P));
    std::memcpy(padded[1], uncond + i, (count - i) * sizeof(P));
    add(padded[0], padded[1]);
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
      const int64_t begin = item % chunks * chunk, at = item / chunks * p.count + begin;
      parts[item] =
          deviation_sums(static_cast<const P*>(p.prediction) + at, static_cast<const P*>(p.uncond_prediction) + at,
                         minimum(chunk, p.count - begin), c.guidance);
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
